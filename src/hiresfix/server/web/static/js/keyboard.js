// Everything by keyboard. Shortcuts of one key can be turned off (WCAG 2.1.4) and never act while somebody types.

import { bench, remember, select, work } from "./bench.js";
import { $, composing, open } from "./dom.js";
import { run } from "./order.js";
import { viewer } from "./stage.js";

export function listenToKeys() {
  $("single-keys").checked = bench.singleKeys;
  $("single-keys").addEventListener("change", () => {
    bench.singleKeys = $("single-keys").checked;
    remember();
  });
  // Input methods end a composition with Enter: that must not submit, whatever the browser thinks.
  document.addEventListener("keydown", (event) => composing(event) && event.key === "Enter" && event.preventDefault(), true);
  document.addEventListener("keydown", pressed);
  document.addEventListener("keyup", (event) => event.key === " " && viewer.holdBefore(false));
}

function pressed(event) {
  if (composing(event) || document.querySelector("dialog[open]")) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
    event.preventDefault();
    run();
    return;
  }
  const typing = event.target.closest("input:not([type=range], [type=radio], [type=checkbox]), textarea, select, [contenteditable]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !bench.singleKeys) return;
  const onControl = event.target.closest("button, a, summary, input, [role=slider]");
  if (command(event, onControl)) event.preventDefault();
}

function command(event, onControl) {
  const arrows = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (event.shiftKey && arrows[event.key]) return viewer.pan(...arrows[event.key]) ?? true;
  if (event.key === "?") return open($("help")) ?? true;
  if (event.key === " " && !onControl && viewer.panes.length) return viewer.holdBefore(true) ?? true;
  if (["ArrowLeft", "ArrowRight"].includes(event.key) && !onControl && viewer.mode === "slider" && viewer.fitted && viewer.panes.length) {
    return viewer.setSplit(viewer.split + (event.key === "ArrowLeft" ? -2 : 2)) ?? true;
  }
  if (event.key.toLowerCase() === "o") return $("files").click() ?? true;
  if (event.key === "[" || event.key === "]") return step(event.key === "[" ? -1 : 1);
  return viewer.press(event.key);
}

function step(by) {
  const ids = [...work.pictures.keys()];
  if (ids.length < 2) return false;
  select(ids[(ids.indexOf(bench.selected) + by + ids.length) % ids.length]);
  return true;
}
