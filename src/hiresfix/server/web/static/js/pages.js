// What the public pages gain with script: samples under a slider, and buttons that copy programs.

import { t, number } from "./text.js";

for (const figure of document.querySelectorAll("[data-compare]")) slide(figure);
for (const button of document.querySelectorAll("[data-copy]")) offerCopy(button);

/** Lay "before" over "after"; a range input, which keyboards and screen readers know, moves the border. */
function slide(figure) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: "0", max: "100", step: "1", value: "50" });
  input.setAttribute("aria-label", figure.dataset.label);
  const divider = document.createElement("div");
  divider.className = "divider";
  const show = () => {
    figure.style.setProperty("--at", `${input.value}%`);
    input.setAttribute("aria-valuetext", t("{percent} % after", { percent: number(100 - input.value) }));
  };
  input.addEventListener("input", show);
  figure.classList.add("live");
  figure.append(divider, input);
  show();
}

function offerCopy(button) {
  if (!navigator.clipboard) return; // only where the page came over TLS or from this machine
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code").textContent;
    const copied = await navigator.clipboard.writeText(code).then(() => true, () => false);
    button.textContent = copied ? t("Copied") : t("Could not copy");
    setTimeout(() => (button.textContent = label), 2000);
  });
}
