// The history: all runs, newest first, with what can be done with each.

import { isFinished, sameOriginUrl } from "./api.js";
import { formatValue, paramLabel } from "./controls.js";
import { $, h, icon, iconButton, PAGE_DATA, setChildren } from "./dom.js";
import { renderJobError, translateSentence } from "./error_messages.js";
import { formatRelativeTime, formatSize, timeElement } from "./format.js";
import { formatNumber, t } from "./i18n.js";
import { statusText } from "./jobs.js";
import { isShowable, showErrors } from "./store.js";

export class HistoryList {
  /**
   * @param {import("./jobs.js").Jobs} jobs
   * @param {RunActions} actions
   */
  constructor(jobs, actions) {
    this.jobs = jobs;
    this.actions = actions;
    /** @type {Map<string, HTMLElement>} list items by job ID */
    this.items = new Map();
    this.visibility = new IntersectionObserver((entries) => this.#onVisible(entries), { rootMargin: "200px" });
    this.loading = Promise.resolve();
  }

  render() {
    const focused = /** @type {HTMLElement} */ (document.activeElement);
    const focusedItem = focused.closest("#history-list li");
    const list = $("history-list");
    const runs = [...this.jobs.runs.values()].sort((a, b) => createdAt(b) - createdAt(a));
    const items = runs.map((run) => this.#item(run));
    const isSame = items.length === list.children.length && items.every((item, i) => item === list.children[i]);
    if (!isSame) list.replaceChildren(...items);
    if (focusedItem && document.activeElement !== focused) {
      const sameButton = focusedItem.querySelector(`[data-action="${focused.dataset.action}"]`);
      const button = sameButton ?? focusedItem.querySelector("[data-action]");
      /** @type {HTMLElement | null} */ (button)?.focus();
    }
    $("history-empty").hidden = items.length > 0;
  }

  /** Return the list item of a run, rendered anew only if something in it changed. */
  #item(/** @type {Run} */ run) {
    const { job } = run;
    const parts = [job?.status, job?.progress, job?.queuePosition, job?.expired, run.thumb?.size, Boolean(run.error)];
    const version = parts.join();
    const item = this.items.get(run.id) ?? h("li.history-item", { "data-id": run.id });
    if (item.dataset.version === version) return item;
    item.dataset.version = version;
    setChildren(item, this.#thumbnail(run), caption(run), this.#buttons(run));
    this.items.set(run.id, item);
    if (isShowable(run)) this.visibility.observe(item);
    return item;
  }

  #thumbnail(/** @type {Run} */ run) {
    const { job, thumb } = run;
    const image = thumb
      ? h("img", { src: this.jobs.objectUrl(`thumb-${run.id}`, thumb), alt: "" })
      : icon("M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4");
    const thumbnail = h("span.thumbnail", image);
    if (job && !isFinished(job)) {
      thumbnail.append(h("progress", { max: 100, value: job.progress, "aria-label": statusText(job) }));
    }
    if (!isShowable(run)) return h("div.thumbnail-frame", { "data-state": job?.status ?? "QUEUED" }, thumbnail);
    const properties = {
      "data-action": "show",
      "aria-label": t("Show {name}", { name: title(run) }),
      onclick: () => showErrors(() => this.actions.show(run)),
    };
    return h("button.thumbnail-frame", properties, thumbnail);
  }

  /** @type {(run: Run, action: keyof RunActions, label: string, path: string) => HTMLElement} */
  #button(run, action, label, path) {
    const onclick = () => showErrors(() => this.actions[action](run));
    return iconButton(label, path, onclick, { "data-action": action, "aria-label": `${label}: ${title(run)}` });
  }

  #buttons(/** @type {Run} */ run) {
    if (!run.job || !isFinished(run.job)) {
      return h("div.tools", this.#button(run, "cancel", t("Cancel"), "M6 6l12 12M18 6L6 18"));
    }
    const canShow = isShowable(run);
    const comparePath = "M12 3v18M5 7h4v10H5zM15 7h4v10h-4z";
    const deletePath = "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5";
    return h(
      "div.tools",
      this.#button(run, "reuse", t("Reuse settings"), "M4 12a8 8 0 1 1 3 6M4 19v-5h5"),
      canShow && this.#button(run, "compare", t("Compare with the current image"), comparePath),
      canShow && downloadLink(/** @type {FinishedRun} */ (run)),
      this.#button(run, "showDetails", t("Details"), "M12 8v.5M12 11v6M12 3a9 9 0 1 0 .1 0"),
      canShow && this.#button(run, "deleteFiles", t("Delete files"), deletePath),
    );
  }

  #onVisible(/** @type {IntersectionObserverEntry[]} */ entries) {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) this.#loadThumbnail(/** @type {HTMLElement} */ (target));
    }
  }

  #loadThumbnail(/** @type {HTMLElement} */ item) {
    this.visibility.unobserve(item);
    const run = this.jobs.runs.get(item.dataset.id ?? "");
    if (!run || !isShowable(run)) return;
    const load = () => this.jobs.loadThumbnail(/** @type {FinishedRun} */ (run));
    this.loading = this.loading.then(load).catch(() => {}); // one after another
  }
}

const createdAt = (/** @type {Run} */ { job, at }) => (job ? Date.parse(job.createdAt) : at);

const title = (/** @type {Run} */ { name, id }) => name || t("Job {id}", { id: id.slice(0, 8) });

function caption(/** @type {Run} */ run) {
  const { job } = run;
  const size = job?.width ? formatSize(job.width, job.height) : "";
  const created = timeElement(job?.createdAt ?? new Date(run.at).toISOString());
  return h(
    "div.history-text",
    h("p.history-name", { title: title(run) }, title(run)),
    h("p.muted.small", [stateLabel(job), size].filter(Boolean).join(" · ")),
    h("p.muted.small", { title: job?.expiresAt ?? "" }, expiryLabel(job) || created),
  );
}

function stateLabel(/** @type {Job | null} */ job) {
  if (!job) return t("Sending…");
  return job.status === "COMPLETED" ? "" : PAGE_DATA.jobStates[job.status];
}

function expiryLabel(/** @type {Job | null} */ job) {
  if (job?.status !== "COMPLETED") return "";
  if (job.expired) return t("Files deleted");
  return job.expiresAt ? t("Files expire {when}", { when: formatRelativeTime(job.expiresAt) }) : "";
}

function downloadLink(/** @type {FinishedRun} */ run) {
  const label = t("Download");
  const properties = {
    href: sameOriginUrl(run.job.result.images[0]),
    download: "",
    "data-action": "download",
    "aria-label": `${label}: ${title(run)}`,
    title: label,
  };
  return h("a.tool", properties, icon("M12 4v11M7 11l5 5 5-5M5 20h14"));
}

/**
 * List the facts of a job: state, times, price and parameters.
 * @param {string} id
 * @param {Job} job
 * @param {Params} params
 * @returns {Child}
 */
export function jobDetails(id, job, params) {
  const { seed } = job;
  /** @type {(false | [string, Child])[]} */
  const rows = [
    [t("Job"), [h("code", id), " · ", PAGE_DATA.jobStates[job.status]]],
    [t("Created"), timeElement(job.createdAt)],
    job.width !== null && [t("Size"), formatSize(job.width, job.height)],
    [t("Price"), job.status === "COMPLETED" ? formatNumber(job.creditCost) : t("refunded")],
    typeof seed === "number" && [paramLabel("seed"), h("code", String(seed))],
    job.expiresAt !== null && [t("Available until"), timeElement(job.expiresAt)],
    [t("Model"), h("code", job.model)],
  ];
  for (const [name, value] of Object.entries(params)) {
    if (name !== "seed") rows.push([paramLabel(name), formatValue(name, value)]);
  }
  const facts = rows.filter((row) => row !== false).map(([term, value]) => [h("dt", term), h("dd", value)]);
  return [
    h("dl.facts", facts),
    job.status === "FAILED" && h("p.notice.bad", renderJobError(job)),
    (job.metadata?.warnings ?? []).map((warning) => h("p.notice", translateSentence(warning))),
  ];
}
