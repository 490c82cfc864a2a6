// Scripts of the public pages: before/after sliders over the samples, and copy buttons for code.

import { formatNumber, t } from "./i18n.js";

/** @type {NodeListOf<HTMLElement>} */
const figures = document.querySelectorAll("[data-compare]");
/** @type {NodeListOf<HTMLButtonElement>} */
const copyButtons = document.querySelectorAll("[data-copy]");

for (const figure of figures) addSlider(figure);
for (const button of copyButtons) enableCopy(button);

/** Lay "before" over "after". A range input moves the divider, because keyboards and screen readers support it. */
function addSlider(/** @type {HTMLElement} */ figure) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: "0", max: "100", step: "1", value: "50" });
  input.setAttribute("aria-label", figure.dataset.label ?? "");
  const divider = document.createElement("div");
  divider.className = "divider";
  const update = () => {
    figure.style.setProperty("--at", `${input.value}%`);
    const percent = formatNumber(100 - input.valueAsNumber);
    input.setAttribute("aria-valuetext", t("{percent}% after", { percent }));
  };
  input.addEventListener("input", update);
  figure.classList.add("live");
  figure.append(divider, input);
  update();
}

function enableCopy(/** @type {HTMLButtonElement} */ button) {
  if (!navigator.clipboard) return; // exists only on https and on loopback
  const label = button.textContent;
  const code = button.parentElement?.querySelector("code")?.textContent ?? "";
  const copy = () =>
    navigator.clipboard.writeText(code).then(
      () => t("Copied"),
      () => t("Copy failed"),
    );
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.textContent = await copy();
    setTimeout(() => {
      button.textContent = label;
    }, 2000);
  });
}
