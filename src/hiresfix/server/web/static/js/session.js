// Who is signed in: by a one-time link, by a key, or still from before; and signing out.

import { credits } from "./account.js";
import * as api from "./api.js";
import { bench, redraw, say, work } from "./bench.js";
import { $, debounced, fillWith, open } from "./dom.js";
import * as keep from "./keep.js";
import { t } from "./text.js";

export async function signInByLink() {
  const token = /^#signin=([\w-]+)$/.exec(location.hash)?.[1];
  if (!token) return false;
  window.history.replaceState(null, "", location.pathname + location.search);
  try {
    const { apiKey } = await api.post("/v2/signin", { token });
    await enter(apiKey, { remember: keep.isRemembered() });
    say(t("You are signed in."), "good");
    return true;
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (!(await enterAgain())) askForKey(t("This link was used already or is too old. Get a new one with `hiresfix signin`, or use an API key.").replaceAll("`", ""));
    return true;
  }
}

export async function enterAgain() {
  const key = keep.loadKey();
  if (!key) return false;
  api.setKey(key);
  try {
    await refreshMe();
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      keep.forgetKey();
      api.setKey(null);
      return false;
    }
    say(error.text ?? String(error), "bad");
  }
  return true;
}

async function enter(key, { remember }) {
  bench.me = await api.get("/v2/me", { as: key });
  api.setKey(key);
  keep.keepKey(key, { remember });
  showMe();
  work.dispatchEvent(new Event("entered"));
}

export async function refreshMe() {
  bench.me = await api.get("/v2/me");
  showMe();
  redraw();
}

export const refreshMeSoon = debounced(300, () => api.hasKey() && refreshMe().catch(() => {}));

export function showMe() {
  $("open-account").hidden = !bench.me;
  $("open-signin").hidden = Boolean(bench.me);
  if (bench.me) {
    $("credits").textContent = credits(bench.me.team.credits);
    $("open-account").setAttribute("aria-label", t("Account: {credits}", { credits: credits(bench.me.team.credits) }));
  }
}

export function askForKey(problem = "") {
  $("signin-error").hidden = !problem;
  fillWith($("signin-error"), problem);
  $("remember").checked = keep.isRemembered();
  open($("signin"));
}

export async function signIn(event) {
  event.preventDefault();
  const key = $("key").value.trim();
  try {
    await enter(key, { remember: $("remember").checked });
    $("key").value = "";
    $("signin").close();
    $("open-account").focus(); // what opened the dialog is gone
    say(t("You are signed in."), "good");
  } catch (error) {
    $("signin-error").hidden = false;
    fillWith($("signin-error"), error.text ?? String(error));
    $("key").focus();
  }
}

export async function signOut(everything) {
  // A key that a sign-in link made serves nobody else: it ends with the session.
  const own = bench.me?.apiKey;
  if (own?.name === "Studio") await api.remove(`/v2/keys/${own.id}`).catch(() => {});
  keep.forgetKey();
  api.setKey(null);
  bench.me = null;
  work.leave();
  if (everything) {
    await keep.dropEverything();
    for (const id of [...work.pictures.keys()]) work.removePicture(id);
  }
  $("account").close();
  showMe();
  redraw();
  say(t("You are signed out."));
}
