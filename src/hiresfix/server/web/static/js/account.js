// The account's panels: credits and their ledger, keys, webhook deliveries. All by public routes, by the key's role.

import { ApiError, get, post, remove } from "./api.js";
import { lookAtJob } from "./deeds.js";
import { $, FACTS, fillWith, h } from "./dom.js";
import * as keep from "./keep.js";
import { signOut } from "./session.js";
import { language, number, t, tn } from "./text.js";
import { told } from "./told.js";

const moments = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
export const moment = (text) => (text ? h("time", { dateTime: text }, moments.format(new Date(text))) : h("span.muted", t("never")));

const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });

/** "in 3 days", "2 hours ago". */
export function fromNow(text) {
  const minutes = (Date.parse(text) - Date.now()) / 60_000;
  for (const [unit, size] of [["day", 1440], ["hour", 60]]) if (Math.abs(minutes) >= size) return relative.format(Math.trunc(minutes / size), unit);
  return relative.format(Math.trunc(minutes), "minute");
}

export const credits = (n) => tn("{n} credit", "{n} credits", n);

const leads = (me) => ["OWNER", "ADMIN"].includes(me.user.role);

function table(heads, rows, empty) {
  if (!rows.length) return h("p.muted", empty);
  return h("div.table", { tabIndex: 0, role: "region", "aria-label": heads[0] }, h("table",
    h("thead", h("tr", heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", rows.map((cells) => h("tr", cells.map((cell) => h("td", cell)))))));
}

const wrong = (error) => h("p.notice.bad", { role: "alert" }, error instanceof ApiError ? error.text : String(error));

/** Show the panels. */
export async function showAccount(me) {
  const panels = { credits: ledger, keys, webhooks, device };
  const [body, list] = [$("account-panel"), $("account-tabs")];
  let newest = 0;
  const choose = async (name) => {
    const turn = ++newest;
    for (const tab of list.children) {
      const chosen = tab.dataset.panel === name;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
    }
    body.setAttribute("aria-labelledby", `account-${name}`);
    fillWith(body, h("p.muted", t("Loading …")));
    const found = await panels[name](me, () => choose(name)).catch(wrong);
    if (turn === newest) fillWith(body, found); // else another tab was chosen meanwhile
  };
  $("account-who").textContent = `${me.team.name} · ${me.user.email}`;
  list.onclick = ({ target }) => target.dataset.panel && choose(target.dataset.panel);
  await choose("credits");
}

/** A list that grows by pages: `load(cursor)` gives `[rows, nextCursor]`. */
async function pages(heads, load, empty) {
  const place = h("div.stack");
  let rows = [];
  const grow = async (cursor) => {
    const [more, next] = await load(cursor);
    rows = [...rows, ...more];
    fillWith(place, table(heads, rows, empty), next && h("button.button.small", { onclick: () => grow(next) }, t("Show more")));
  };
  await grow(null);
  return place;
}

const after = (cursor) => (cursor ? `&cursor=${encodeURIComponent(cursor)}` : "");

const jobLink = (id) => h("button.link", { onclick: () => lookAtJob(id) }, id.slice(0, 8));

async function ledger(me) {
  const scope = leads(me) ? "team" : "user";
  const load = async (cursor) => {
    const page = await get(`/v2/credits/ledger?scope=${scope}&limit=20${after(cursor)}`);
    const rows = page.entries.map((entry) => [
      moment(entry.createdAt),
      FACTS.entries[entry.kind],
      h("span", { className: entry.amount > 0 ? "gain" : "loss" }, `${entry.amount > 0 ? "+" : "−"}${number(Math.abs(entry.amount))}`),
      entry.jobId ? jobLink(entry.jobId) : told(entry.reason),
    ]);
    return [rows, page.nextCursor];
  };
  return [
    h("p.balance", h("strong", number(me.team.credits)), " ", tn("credit left", "credits left", me.team.credits)),
    h("p.muted.small", t("You pay for finished pictures only: what fails or is cancelled is given back at once.")),
    await pages([t("When"), t("What"), t("Credits"), t("Job or reason")], load, t("Nothing yet.")),
  ];
}

async function keys(me, again) {
  const scope = leads(me) ? "team" : "user";
  const { keys: found } = await get(`/v2/keys?scope=${scope}`);
  const state = (key) => {
    if (key.revokedAt) return h("span.muted", t("revoked"));
    if (key.expiresAt) return Date.parse(key.expiresAt) < Date.now() ? h("span.muted", t("ended")) : h("span", t("ends {when}", { when: fromNow(key.expiresAt) }));
    return key.active ? t("active") : t("suspended");
  };
  const error = h("div");
  const revoke = async (key) => {
    if (!confirm(t("Revoke “{name}”? What uses it stops working at once.", { name: key.name }))) return;
    try {
      await remove(`/v2/keys/${key.id}`);
      await again();
    } catch (failure) {
      fillWith(error, wrong(failure));
    }
  };
  const rows = found.filter((key) => !key.revokedAt).reverse().map((key) => [
    h("span", key.name, key.id === me.apiKey?.id && [" ", h("span.badge", t("this one"))]),
    h("code", `${key.prefix}…`),
    state(key),
    key.monthlyBudget === null ? t("none") : number(key.monthlyBudget),
    moment(key.lastUsedAt),
    h("button.button.small", { onclick: () => revoke(key), "aria-label": t("Revoke {name}", { name: key.name }) }, t("Revoke")),
  ]);
  return [
    leads(me) && newKey(),
    error,
    table([t("Name"), t("Key"), t("State"), t("Monthly budget"), t("Last used"), t("Action")], rows, t("No keys.")),
  ];
}

/** What the page holds ready under this id, to be put in. */
const prepared = (id) => $(id).content.firstElementChild.cloneNode(true);

function newKey() {
  const form = prepared("new-key");
  const [name, budget, shown] = ["#key-name", "#key-budget", "[aria-live]"].map((part) => form.querySelector(part));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const made = await post("/v2/keys", { name: name.value, monthlyBudget: budget.value === "" ? null : budget.valueAsNumber });
      const copy = h("button.button.small", { onclick: async () => {
        await navigator.clipboard.writeText(made.apiKey);
        copy.textContent = t("Copied");
      } }, t("Copy"));
      fillWith(shown, h("div.notice.good", h("p", t("This is the only time the key is shown. Keep it now.")), h("p.secret", h("code", made.apiKey), " ", navigator.clipboard && copy)));
      form.reset();
    } catch (error) {
      fillWith(shown, wrong(error));
    }
  });
  return form;
}

async function webhooks(me) {
  const scope = leads(me) ? "team" : "user";
  const error = h("div");
  const load = async (cursor) => {
    const page = await get(`/v2/webhooks/deliveries?scope=${scope}&limit=20${after(cursor)}`);
    return [page.deliveries.map((delivery) => deliveryRow(delivery, error)), page.nextCursor];
  };
  return [
    error,
    await pages([t("When"), t("Event"), t("Receiver"), t("State"), t("Attempts"), t("Job"), t("Action")], load, t("No webhooks were sent. Submissions that name a webhookUrl appear here.")),
  ];
}

function deliveryRow(delivery, error) {
  const state = h("span", { className: delivery.status === "failed" ? "loss" : "" }, FACTS.deliveries[delivery.status], delivery.lastStatus ? ` (${delivery.lastStatus})` : "");
  const again = h("button.button.small", { disabled: delivery.event === "progress", onclick: async () => {
    try {
      const sent = await post(`/v2/webhooks/deliveries/${delivery.id}/redeliver`);
      state.textContent = FACTS.deliveries[sent.status];
      state.className = "";
    } catch (failure) {
      fillWith(error, wrong(failure));
    }
  } }, t("Send again"));
  return [
    moment(delivery.createdAt), FACTS.events[delivery.event], h("span.receiver", { title: delivery.url }, new URL(delivery.url).host), state,
    number(delivery.attemptCount), jobLink(delivery.jobId), again,
  ];
}

async function device() {
  const panel = prepared("device");
  const [stay, out, forget] = panel.querySelectorAll("input, button");
  stay.checked = keep.isRemembered();
  stay.addEventListener("change", () => keep.keepKey(keep.loadKey(), { remember: stay.checked }));
  out.addEventListener("click", () => signOut(false));
  forget.addEventListener("click", () => signOut(true));
  return panel;
}
