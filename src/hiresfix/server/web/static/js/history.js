// The history: what was made, newest first, what can still be done with it, and how long it stays.

import { fromNow, moment } from "./account.js";
import { here, isOver } from "./api.js";
import { guarded } from "./bench.js";
import { nameOf, shown } from "./controls.js";
import { $, FACTS, fillWith, h, icon, tool } from "./dom.js";
import { number, t } from "./text.js";
import { told } from "./told.js";
import { stage } from "./work.js";

export class History {
  /** `deeds`: look(run), reuse(run), compare(run), cancel(run), erase(run), details(run). */
  constructor(work, deeds) {
    this.work = work;
    this.deeds = deeds;
    this.items = new Map();
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.#loadThumbnail(entry.target);
    }, { rootMargin: "200px" });
    this.loading = Promise.resolve();
  }

  render() {
    const at = document.activeElement;
    const focused = at.closest("#shots li");
    const list = $("shots");
    const wanted = [...this.work.runs.values()].sort((a, b) => this.#time(b) - this.#time(a)).map((run) => this.#item(run));
    if (wanted.length !== list.children.length || wanted.some((item, index) => item !== list.children[index])) list.replaceChildren(...wanted);
    if (focused && document.activeElement !== at) (focused.querySelector(`[data-action="${at.dataset.action}"]`) ?? focused.querySelector("[data-action]"))?.focus();
    $("history-empty").hidden = wanted.length > 0;
  }

  #time(run) {
    return run.job ? Date.parse(run.job.createdAt) : run.at;
  }

  #item(run) {
    const job = run.job;
    const signature = [job?.status, job?.progress, job?.queuePosition, job?.expired, run.thumb?.size, Boolean(run.error)].join();
    const known = this.items.get(run.id);
    if (known?.dataset.signature === signature) return known;
    const item = known ?? h("li.shot", { "data-id": run.id });
    item.dataset.signature = signature;
    fillWith(item, this.#picture(run), this.#caption(run), this.#tools(run));
    this.items.set(run.id, item);
    if (job?.status === "COMPLETED" && !job.expired) this.seen.observe(item);
    return item;
  }

  #picture(run) {
    const job = run.job;
    const done = job?.status === "COMPLETED" && !job.expired;
    const place = h("span.thumb", run.thumb ? h("img", { src: this.work.addressOf(`thumb-${run.id}`, run.thumb), alt: "" }) : icon("M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4"));
    if (job && !isOver(job)) place.append(h("progress", { max: 100, value: job.progress, "aria-label": stage(job) }));
    if (!done) return h("div.thumb-place", { "data-state": job?.status ?? "QUEUED" }, place);
    return h("button.thumb-place", { "data-action": "look", onclick: () => guarded(() => this.deeds.look(run)), "aria-label": t("Look at {name}", { name: this.#title(run) }) }, place);
  }

  #title(run) {
    return run.name || t("Job {id}", { id: run.id.slice(0, 8) });
  }

  #caption(run) {
    const job = run.job;
    const size = job?.width ? `${number(job.width, 0)} × ${number(job.height, 0)}` : "";
    const state = !job ? t("Sending …") : job.status === "COMPLETED" ? "" : FACTS.states[job.status];
    const fate = !job || job.status !== "COMPLETED" ? "" : job.expired ? t("Files deleted") : job.expiresAt ? t("Files go {when}", { when: fromNow(job.expiresAt) }) : "";
    return h("div.shot-text",
      h("p.shot-name", { title: this.#title(run) }, this.#title(run)),
      h("p.muted.small", [state, size].filter(Boolean).join(" · ")),
      h("p.muted.small", { title: job?.expiresAt ?? "" }, fate || moment(job?.createdAt ?? new Date(run.at).toISOString())));
  }

  #tools(run) {
    const job = run.job;
    const button = (action, label, path) => tool(label, path, () => guarded(() => this.deeds[action](run)), { "data-action": action, "aria-label": `${label}: ${this.#title(run)}` });
    if (!job || !isOver(job)) return h("div.tools", button("cancel", t("Cancel"), "M6 6l12 12M18 6L6 18"));
    const done = job.status === "COMPLETED" && !job.expired;
    return h("div.tools",
      button("reuse", t("Again with changes"), "M4 12a8 8 0 1 1 3 6M4 19v-5h5"),
      done && button("compare", t("Compare with the one shown"), "M12 3v18M5 7h4v10H5zM15 7h4v10h-4z"),
      done && h("a.tool", { href: here(job.result.images[0]), download: "", "data-action": "download", "aria-label": `${t("Download")}: ${this.#title(run)}`, title: t("Download") }, icon("M12 4v11M7 11l5 5 5-5M5 20h14")),
      button("details", t("Details"), "M12 8v.5M12 11v6M12 3a9 9 0 1 0 .1 0"),
      done && button("erase", t("Delete files"), "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5"));
  }

  #loadThumbnail(item) {
    const run = this.work.runs.get(item.dataset.id);
    this.seen.unobserve(item);
    if (!run || run.thumb) return;
    this.loading = this.loading.then(() => this.work.small(run)).catch(() => {}); // one after another
  }
}

/** What a job was and what became of it, as a list of facts. */
export function facts(run, params) {
  const job = run.job;
  const rows = [
    [t("Job"), [h("code", run.id), " · ", FACTS.states[job.status]]],
    [t("Made"), moment(job.createdAt)],
    job.width && [t("Size"), `${number(job.width, 0)} × ${number(job.height, 0)}`],
    [t("Price"), job.status === "COMPLETED" ? number(job.creditCost) : t("given back")],
    job.seed !== null && job.seed !== undefined && [nameOf("seed"), h("code", String(job.seed))],
    job.expiresAt && [t("Kept until"), moment(job.expiresAt)],
    [t("Model"), h("code", job.model)],
    ...Object.entries(params).filter(([name]) => name !== "seed").map(([name, value]) => [nameOf(name), shown(name, value)]),
  ];
  return [
    h("dl.facts", rows.filter(Boolean).flatMap(([term, value]) => [h("dt", term), h("dd", ...[value].flat())])),
    job.error && job.status === "FAILED" && h("p.notice.bad", told(job.error)),
    (job.metadata?.warnings ?? []).map((warning) => h("p.notice", told(warning))),
  ];
}
