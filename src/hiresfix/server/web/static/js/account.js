// The account's panels: credits and their ledger, keys, webhook deliveries. All by public routes, by the key's role.

import { ApiError, get, post, remove } from "./api.js";
import { $, FACTS, fillWith, h } from "./dom.js";
import { language, number, t, tn } from "./text.js";

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

/** Fill `place` with the panels; `actions` has `signOut(everything)`, `remember(bool)`, `remembered`, `look(job)`. */
export async function showAccount(place, me, actions) {
  const tabs = { credits: [t("Credits"), ledger], keys: [t("API keys"), keys], webhooks: [t("Webhooks"), webhooks], device: [t("This device"), device] };
  const body = h("div.stack", { role: "tabpanel", id: "account-panel", tabIndex: 0 });
  const list = h("div.segments", { role: "tablist", "aria-label": t("Account") });
  const choose = async (name, focus) => {
    for (const tab of list.children) {
      const chosen = tab.id === `account-${name}`;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      if (chosen && focus) tab.focus();
    }
    body.setAttribute("aria-labelledby", `account-${name}`);
    fillWith(body, h("p.muted", t("Loading …")));
    try {
      fillWith(body, await tabs[name][1](me, actions, () => choose(name)));
    } catch (error) {
      fillWith(body, wrong(error));
    }
  };
  const names = Object.keys(tabs);
  for (const name of names) {
    list.append(h("button", { role: "tab", id: `account-${name}`, "aria-controls": "account-panel", onclick: () => choose(name) }, tabs[name][0]));
  }
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const at = names.findIndex((name) => list.querySelector(`#account-${name}`) === document.activeElement);
    choose(names[(at + step + names.length) % names.length], true);
  });
  fillWith(place, h("p.muted.small", `${me.team.name} · ${me.user.email}`), list, body);
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

async function ledger(me, { look }) {
  const scope = leads(me) ? "team" : "user";
  const load = async (cursor) => {
    const page = await get(`/v2/credits/ledger?scope=${scope}&limit=20${after(cursor)}`);
    const rows = page.entries.map((entry) => [
      moment(entry.createdAt),
      FACTS.entries[entry.kind],
      h("span", { className: entry.amount > 0 ? "gain" : "loss" }, `${entry.amount > 0 ? "+" : "−"}${number(Math.abs(entry.amount))}`),
      entry.jobId ? h("button.link", { onclick: () => look(entry.jobId) }, entry.jobId.slice(0, 8)) : entry.reason,
    ]);
    return [rows, page.nextCursor];
  };
  return [
    h("p.balance", h("strong", number(me.team.credits)), " ", tn("credit left", "credits left", me.team.credits)),
    h("p.muted.small", t("You pay for finished pictures only: what fails or is cancelled is given back at once.")),
    await pages([t("When"), t("What"), t("Credits"), t("Job or reason")], load, t("Nothing yet.")),
  ];
}

async function keys(me, _actions, again) {
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

async function webhooks(me, { look }) {
  const scope = leads(me) ? "team" : "user";
  const error = h("div");
  const load = async (cursor) => {
    const page = await get(`/v2/webhooks/deliveries?scope=${scope}&limit=20${after(cursor)}`);
    return [page.deliveries.map((delivery) => deliveryRow(delivery, look, error)), page.nextCursor];
  };
  return [
    error,
    await pages([t("When"), t("Event"), t("Receiver"), t("State"), t("Attempts"), t("Job"), t("Action")], load, t("No webhooks were sent. Submissions that name a webhookUrl appear here.")),
  ];
}

function deliveryRow(delivery, look, error) {
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
    number(delivery.attemptCount), h("button.link", { onclick: () => look(delivery.jobId) }, delivery.jobId.slice(0, 8)), again,
  ];
}

async function device(me, { signOut, remember, remembered }) {
  const panel = prepared("device");
  const [keep, out, forget] = panel.querySelectorAll("input, button");
  keep.checked = remembered();
  keep.addEventListener("change", () => remember(keep.checked));
  out.addEventListener("click", () => signOut(false));
  forget.addEventListener("click", () => signOut(true));
  return panel;
}
