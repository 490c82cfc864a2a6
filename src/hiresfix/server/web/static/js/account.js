// The account dialog: credits and ledger, API keys, webhook deliveries, this device. Uses only public API routes.

import { showJobDetails } from "./actions.js";
import { ApiError, get, post, remove } from "./api.js";
import { $, cloneTemplate, h, PAGE_DATA, setChildren } from "./dom.js";
import { translateSentence } from "./error_messages.js";
import { formatRelativeTime, timeElement } from "./format.js";
import { formatNumber, t, tn } from "./i18n.js";
import { signOut } from "./session.js";
import * as storage from "./storage.js";

/** Return the widest scope the user may read. */
const scopeOf = (/** @type {Me} */ me) => (["OWNER", "ADMIN"].includes(me.user.role) ? "team" : "user");

/** @type {(headings: string[], rows: Child[][], emptyText: string) => HTMLElement} */
function table(headings, rows, emptyText) {
  if (!rows.length) return h("p.muted", emptyText);
  const head = headings.map((heading) => h("th", { scope: "col" }, heading));
  const body = rows.map((cells) =>
    h(
      "tr",
      cells.map((cell) => h("td", cell)),
    ),
  );
  const scrollable = { tabIndex: 0, role: "region", "aria-label": headings[0] };
  return h("div.table", scrollable, h("table", h("thead", h("tr", head)), h("tbody", body)));
}

const errorNotice = (/** @type {unknown} */ error) =>
  h("p.notice.bad", { role: "alert" }, error instanceof ApiError ? error.content : String(error));

/** @type {Record<string, (me: Me, reload: () => Promise<void>) => Promise<Child> | Child>} */
const PANELS = { credits: creditsPanel, keys: keysPanel, webhooks: webhooksPanel, device: devicePanel };

/** Fill the account dialog and open its first panel. */
export async function showAccount(/** @type {Me} */ me) {
  const panel = $("account-panel");
  const tabs = /** @type {HTMLElement[]} */ ([...$("account-tabs").children]);
  let lastChoice = 0;
  const showPanel = async (/** @type {string} */ name) => {
    const choice = ++lastChoice;
    for (const tab of tabs) {
      const isSelected = tab.dataset.panel === name;
      tab.setAttribute("aria-selected", String(isSelected));
      tab.tabIndex = isSelected ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", `account-${name}`);
    setChildren(panel, h("p.muted", t("Loading…")));
    const content = await loadPanel(name, me, () => showPanel(name));
    if (choice === lastChoice) setChildren(panel, content); // otherwise the user chose another tab meanwhile
  };
  $("account-user").textContent = `${me.team.name} · ${me.user.email}`;
  for (const tab of tabs) tab.onclick = () => showPanel(tab.dataset.panel ?? "");
  await showPanel("credits");
}

/** @type {(name: string, me: Me, reload: () => Promise<void>) => Promise<Child>} */
async function loadPanel(name, me, reload) {
  try {
    return await PANELS[name](me, reload);
  } catch (error) {
    return errorNotice(error);
  }
}

/**
 * Show a table that grows by pages.
 * @param {string[]} headings
 * @param {(cursor: string | null) => Promise<[Child[][], string | null]>} loadPage returns rows and the next cursor
 * @param {string} emptyText
 */
async function pagedTable(headings, loadPage, emptyText) {
  const container = h("div.stack");
  /** @type {Child[][]} */
  const rows = [];
  const loadMore = async (/** @type {string | null} */ cursor) => {
    const [page, next] = await loadPage(cursor);
    rows.push(...page);
    const more = next && h("button.button.small", { onclick: () => loadMore(next) }, t("Show more"));
    setChildren(container, table(headings, rows, emptyText), more);
  };
  await loadMore(null);
  return container;
}

/** @type {(path: string, me: Me, cursor: string | null) => Promise<any>} */
function getPage(path, me, cursor) {
  const after = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
  return get(`${path}?scope=${scopeOf(me)}&limit=20${after}`);
}

const jobButton = (/** @type {string} */ id) =>
  h("button.link-button", { onclick: () => showJobDetails(id) }, id.slice(0, 8));

// Credits

/** @returns {Promise<Child>} */
async function creditsPanel(/** @type {Me} */ me) {
  const headings = [t("Date"), t("Activity"), t("Credits"), t("Job or reason")];
  /** @type {(cursor: string | null) => Promise<[Child[][], string | null]>} */
  const loadPage = async (cursor) => {
    const page = await getPage("/v2/credits/ledger", me, cursor);
    return [page.entries.map(ledgerRow), page.nextCursor];
  };
  const { credits } = me.team;
  return [
    h("p.balance", h("strong", formatNumber(credits)), " ", tn("credit left", "credits left", credits)),
    h("p.muted.small", t("You only pay for finished images. Failed and cancelled jobs are refunded immediately.")),
    await pagedTable(headings, loadPage, t("No entries yet.")),
  ];
}

/** @type {(entry: LedgerEntry) => Child[]} */
function ledgerRow({ createdAt, kind, amount, jobId, reason }) {
  const isGain = amount > 0;
  const text = `${isGain ? "+" : "−"}${formatNumber(Math.abs(amount))}`;
  return [
    timeElement(createdAt),
    PAGE_DATA.ledgerKinds[kind],
    h("span", { className: isGain ? "positive" : "negative" }, text),
    jobId ? jobButton(jobId) : translateSentence(reason),
  ];
}

// API keys

/** @type {(me: Me, reload: () => Promise<void>) => Promise<Child>} */
async function keysPanel(me, reload) {
  const { keys } = await get(`/v2/keys?scope=${scopeOf(me)}`);
  const error = h("div");
  const revoke = async (/** @type {ApiKey} */ { id, name }) => {
    if (!confirm(t("Revoke “{name}”? Anything that uses this key will stop working immediately.", { name }))) return;
    try {
      await remove(`/v2/keys/${id}`);
      await reload();
    } catch (failure) {
      setChildren(error, errorNotice(failure));
    }
  };
  const headings = [t("Name"), t("Key"), t("State"), t("Monthly budget"), t("Last used"), t("Action")];
  const rows = /** @type {ApiKey[]} */ (keys)
    .filter((key) => !key.revokedAt)
    .reverse()
    .map((key) => keyRow(key, me, () => revoke(key)));
  return [scopeOf(me) === "team" && newKeyForm(), error, table(headings, rows, t("No API keys."))];
}

/** @type {(key: ApiKey, me: Me, revoke: () => void) => Child[]} */
function keyRow(key, me, revoke) {
  const { name, prefix, monthlyBudget } = key;
  const isCurrent = key.id === me.apiKey?.id;
  const label = t("Revoke {name}", { name });
  return [
    h("span", name, isCurrent && [" ", h("span.badge", t("current"))]),
    h("code", `${prefix}…`),
    keyStatus(key),
    monthlyBudget === null ? t("none") : formatNumber(monthlyBudget),
    timeElement(key.lastUsedAt),
    h("button.button.small", { onclick: revoke, "aria-label": label }, t("Revoke")),
  ];
}

/** @type {(key: ApiKey) => Child} */
function keyStatus({ expiresAt, active }) {
  if (!expiresAt) return active ? t("active") : t("suspended");
  if (Date.parse(expiresAt) < Date.now()) return h("span.muted", t("expired"));
  return t("expires {when}", { when: formatRelativeTime(expiresAt) });
}

function newKeyForm() {
  const form = /** @type {HTMLFormElement} */ (cloneTemplate("new-key"));
  const name = /** @type {HTMLInputElement} */ (form.querySelector("#key-name"));
  const budget = /** @type {HTMLInputElement} */ (form.querySelector("#key-budget"));
  const result = /** @type {HTMLElement} */ (form.querySelector("[aria-live]"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const monthlyBudget = budget.value === "" ? null : budget.valueAsNumber;
    try {
      const { apiKey } = await post("/v2/keys", { name: name.value, monthlyBudget });
      setChildren(result, newKeyNotice(apiKey));
      form.reset();
    } catch (error) {
      setChildren(result, errorNotice(error));
    }
  });
  return form;
}

function newKeyNotice(/** @type {string} */ apiKey) {
  const onclick = async () => {
    await navigator.clipboard.writeText(apiKey);
    button.textContent = t("Copied");
  };
  const button = h("button.button.small", { onclick }, t("Copy"));
  const canCopy = Boolean(navigator.clipboard); // exists only on https and on loopback
  return h(
    "div.notice.good",
    h("p", t("Copy the key now. It will not be shown again.")),
    h("p.secret", h("code", apiKey), " ", canCopy && button),
  );
}

// Webhook deliveries

/** @returns {Promise<Child>} */
async function webhooksPanel(/** @type {Me} */ me) {
  const error = h("div");
  const headings = [t("Date"), t("Event"), t("Sent to"), t("State"), t("Attempts"), t("Job"), t("Action")];
  /** @type {(cursor: string | null) => Promise<[Child[][], string | null]>} */
  const loadPage = async (cursor) => {
    const page = await getPage("/v2/webhooks/deliveries", me, cursor);
    const deliveries = /** @type {Delivery[]} */ (page.deliveries);
    return [deliveries.map((delivery) => deliveryRow(delivery, error)), page.nextCursor];
  };
  const emptyText = t("No webhooks sent yet. Jobs submitted with a webhookUrl appear here.");
  return [error, await pagedTable(headings, loadPage, emptyText)];
}

/** @type {(delivery: Delivery, error: HTMLElement) => Child[]} */
function deliveryRow(delivery, error) {
  const { id, event, url, jobId, lastStatus } = delivery;
  const statusNames = PAGE_DATA.deliveryStatuses;
  const code = lastStatus ? ` (${lastStatus})` : "";
  const className = delivery.status === "failed" ? "negative" : "";
  const status = h("span", { className }, statusNames[delivery.status], code);
  const resend = async () => {
    try {
      const resent = await post(`/v2/webhooks/deliveries/${id}/redeliver`);
      status.textContent = statusNames[resent.status];
      status.className = "";
    } catch (failure) {
      setChildren(error, errorNotice(failure));
    }
  };
  return [
    timeElement(delivery.createdAt),
    PAGE_DATA.webhookEvents[event],
    h("span.endpoint", { title: url }, new URL(url).host),
    status,
    formatNumber(delivery.attemptCount),
    jobButton(jobId),
    h("button.button.small", { disabled: event === "progress", onclick: resend }, t("Resend")),
  ];
}

// This device

function devicePanel() {
  const panel = cloneTemplate("device");
  const remember = /** @type {HTMLInputElement} */ (panel.querySelector("input"));
  const [signOutButton, deleteButton] = panel.querySelectorAll("button");
  remember.checked = storage.isRemembered();
  remember.addEventListener("change", () => {
    storage.saveKey(storage.loadKey() ?? "", { remember: remember.checked });
  });
  signOutButton.addEventListener("click", () => signOut());
  deleteButton.addEventListener("click", () => signOut({ deleteImages: true }));
  return panel;
}
