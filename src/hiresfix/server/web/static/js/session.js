// Signing in with a one-time link, with an API key, or with the key from an earlier visit; and signing out.

import * as api from "./api.js";
import { $, debounce, openDialog, setChildren } from "./dom.js";
import { formatCredits } from "./format.js";
import { t } from "./i18n.js";
import * as storage from "./storage.js";
import { jobs, redraw, showNotice, store } from "./store.js";

/** Sign in if the address has a one-time token. Returns false if it has none. */
export async function signInByLink() {
  const token = /^#signin=([\w-]+)$/.exec(location.hash)?.[1];
  if (!token) return false;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    const { apiKey } = await api.post("/v2/signin", { token });
    await startSession(apiKey, { remember: storage.isRemembered() });
    showNotice(t("You are signed in."), "good");
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (!(await resumeSession())) {
      const problem = t(
        "This link has already been used or has expired. Get a new one with `hiresfix login-link`, or use an API key.",
      );
      askForKey(problem.replaceAll("`", ""));
    }
  }
  return true;
}

/** Sign in with the stored key. Returns false if there is none or it is no longer valid. */
export async function resumeSession() {
  const key = storage.loadKey();
  if (!key) return false;
  api.setKey(key);
  try {
    await refreshMe();
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      storage.deleteKey();
      api.setKey(null);
      return false;
    }
    showNotice(error.content ?? String(error), "bad");
  }
  return true;
}

/** @type {(key: string, options: { remember: boolean }) => Promise<void>} */
async function startSession(key, { remember }) {
  store.me = await api.get("/v2/me", { as: key });
  api.setKey(key);
  storage.saveKey(key, { remember });
  showMe();
  jobs.dispatchEvent(new Event("signin"));
}

export async function refreshMe() {
  store.me = await api.get("/v2/me");
  showMe();
  redraw();
}

export const refreshMeSoon = debounce(300, () => api.hasKey() && refreshMe().catch(() => {}));

/** Show the user's credits, or the button to sign in. */
export function showMe() {
  $("open-account").hidden = !store.me;
  $("open-signin").hidden = Boolean(store.me);
  if (store.me) {
    const credits = formatCredits(store.me.team.credits);
    $("credits").textContent = credits;
    $("open-account").setAttribute("aria-label", t("Account: {credits}", { credits }));
  }
}

/** Open the sign-in dialog. */
export function askForKey(/** @type {Child} */ problem = "") {
  $("signin-error").hidden = !problem;
  setChildren($("signin-error"), problem);
  $("remember").checked = storage.isRemembered();
  openDialog($("signin"));
}

export async function signIn(/** @type {Event} */ event) {
  event.preventDefault();
  try {
    await startSession($("key").value.trim(), { remember: $("remember").checked });
    $("key").value = "";
    $("signin").close();
    $("open-account").focus(); // the button that opened the dialog is hidden now
    showNotice(t("You are signed in."), "good");
  } catch (error) {
    $("signin-error").hidden = false;
    setChildren($("signin-error"), error.content ?? String(error));
    $("key").focus();
  }
}

export async function signOut({ deleteImages = false } = {}) {
  // The key of a login link has no other use, so it ends with the session.
  const key = store.me?.apiKey;
  if (key?.name === "Studio") await api.remove(`/v2/keys/${key.id}`).catch(() => {});
  storage.deleteKey();
  api.setKey(null);
  store.me = null;
  jobs.reset();
  if (deleteImages) {
    await storage.clear();
    for (const id of [...jobs.images.keys()]) jobs.removeImage(id);
  }
  $("account").close();
  showMe();
  redraw();
  showNotice(t("You are signed out."));
}
