// Keyboard shortcuts. Single-key shortcuts can be turned off (WCAG 2.1.4) and are off while the user types.

import { $, isComposing, openDialog } from "./dom.js";
import { viewer } from "./preview.js";
import { jobs, saveSettings, selectImage, store } from "./store.js";
import { submitAll } from "./submit.js";
import { PAN_STEPS } from "./viewer.js";

const TEXT_FIELDS = "input:not([type=range], [type=radio], [type=checkbox]), textarea, select, [contenteditable]";
const CONTROLS = "button, a, summary, input, [role=slider]";

export function listenForKeys() {
  const checkbox = $("single-keys");
  checkbox.checked = store.singleKeys;
  checkbox.addEventListener("change", () => {
    store.singleKeys = checkbox.checked;
    saveSettings();
  });
  // Enter ends a composition in an input method. Not all browsers keep it from submitting the form.
  const blockEnter = (/** @type {KeyboardEvent} */ event) =>
    isComposing(event) && event.key === "Enter" && event.preventDefault();
  document.addEventListener("keydown", blockEnter, true);
  document.addEventListener("keydown", onKeyDown);
  document.addEventListener("keyup", (event) => event.key === " " && viewer.showBefore(false));
}

function onKeyDown(/** @type {KeyboardEvent} */ event) {
  if (isComposing(event) || document.querySelector("dialog[open]")) return;
  const hasModifier = event.ctrlKey || event.metaKey;
  if (hasModifier && event.key === "Enter") {
    event.preventDefault();
    submitAll();
    return;
  }
  const target = /** @type {Element} */ (event.target);
  if (target.closest(TEXT_FIELDS) || hasModifier || event.altKey || !store.singleKeys) return;
  if (runShortcut(event, Boolean(target.closest(CONTROLS)))) event.preventDefault();
}

/** Run the shortcut of a key. Returns false if it has none. */
function runShortcut(/** @type {KeyboardEvent} */ event, /** @type {boolean} */ isOnControl) {
  const { key } = event;
  const hasImage = viewer.panes.length > 0;
  const isSlider = viewer.mode === "slider" && viewer.fitted && hasImage;
  if (event.shiftKey && key in PAN_STEPS) viewer.pan(...PAN_STEPS[key]);
  else if (key === "?") openDialog($("help"));
  else if (key === " " && !isOnControl && hasImage) viewer.showBefore(true);
  else if (key === "ArrowLeft" && !isOnControl && isSlider) viewer.setSplit(viewer.split - 2);
  else if (key === "ArrowRight" && !isOnControl && isSlider) viewer.setSplit(viewer.split + 2);
  else if (key.toLowerCase() === "o") $("files").click();
  else if (key === "[") return selectNeighbour(-1);
  else if (key === "]") return selectNeighbour(1);
  else return viewer.handleKey(key);
  return true;
}

function selectNeighbour(/** @type {1 | -1} */ step) {
  const ids = [...jobs.images.keys()];
  if (ids.length < 2) return false;
  selectImage(ids[(ids.indexOf(store.selected ?? "") + step + ids.length) % ids.length]);
  return true;
}
