// What a press of the button will do, told beforehand: sizes, price, time, the same as code; and the button itself.

import { credits } from "./account.js";
import * as api from "./api.js";
import { bench, redraw, remember, say, selected, work } from "./bench.js";
import { nameOf, shown } from "./controls.js";
import { $, arrows, debounced, fillIfNew, fillWith, h } from "./dom.js";
import { askForKey, refreshMeSoon } from "./session.js";
import { LANGUAGES, program } from "./snippets.js";
import { number, t, tn } from "./text.js";

const scaleOf = () => bench.controls.valueOf("scale_factor");
const variantCount = () => Number($("variant-count").value);

export const previewKey = () => [bench.selected, work.pictures.size, bench.controls.model.id, scaleOf(), bench.controls.valueOf("output_format")].join();

export function updatePreview() {
  drawPreview();
  drawCode();
  askPreview();
}

const askPreview = debounced(200, async () => {
  const picture = selected();
  if (!picture || !api.hasKey() || !bench.controls) return;
  const key = previewKey();
  if (bench.preview?.key === key && bench.preview.answer) return;
  try {
    const { output_format: format, scale_factor: scale } = bench.controls.values;
    const params = Object.fromEntries(Object.entries({ output_format: format, scale_factor: scale }).filter(([, value]) => value !== undefined));
    const answer = await work.preview(bench.controls.model, picture, params);
    const cost = await costOfAll(picture, answer, params);
    if (key !== previewKey()) return;
    bench.preview = { key, answer, cost };
    if (!picture.width) [picture.width, picture.height] = [answer.input.width, answer.input.height];
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (key !== previewKey()) return;
    bench.preview = { key, error };
  }
  drawPreview();
  drawCode();
});

/** What all pictures cost together where their sizes decide, so that each has to be asked for; else null. */
async function costOfAll(picture, { creditCost }, params) {
  const { model } = bench.controls;
  if (model.pricingMode === "flat") return null;
  for (const other of wanted()) {
    if (other !== picture) creditCost += (await work.preview(model, other, params).catch(() => null))?.creditCost ?? 0;
  }
  return creditCost;
}

/** What a press of the button enlarges: all pictures but those the server refused, unless it refused all. */
function wanted() {
  const pictures = [...work.pictures.values()];
  const good = pictures.filter((picture) => picture.error?.status !== 400);
  return good.length ? good : pictures;
}

export function drawPreview() {
  const place = $("preview");
  const run = $("run");
  const picture = selected();
  const many = wanted().length;
  const count = many * variantCount();
  run.textContent = variantCount() > 1 ? tn("Make {n} variant", "Make {n} variants", count) : many > 1 ? tn("Enlarge {n} picture", "Enlarge {n} pictures", many) : t("Enlarge");
  run.setAttribute("aria-disabled", !picture);
  const known = bench.preview?.key === (bench.controls && previewKey()) ? bench.preview : null;
  if (!picture) return fillIfNew(place, h("p.muted", t("Choose a picture to see size and price.")));
  if (!api.hasKey()) return fillIfNew(place, h("p", sizes(picture)), h("p.muted.small", t("Sign in to see the price.")));
  if (known?.error) return fillIfNew(place, h("p.wrong", known.error.explained), known.error.detail && h("p.small", known.error.detail));
  const answer = known?.answer;
  fillIfNew(place, h("p", sizes(picture, answer)), h("p.small", answer ? price(answer, (known.cost ?? answer.creditCost * many) * variantCount(), count) : h("span.muted", picture.busy ? t("Uploading …") : t("Asking for the price …"))));
}

function sizes(picture, answer) {
  const { width, height } = answer?.input ?? picture;
  if (!width) return picture.name;
  const [w, h2] = [answer?.output.width ?? width * scaleOf(), answer?.output.height ?? height * scaleOf()];
  return [`${number(width, 0)} × ${number(height, 0)} → `, h("strong", `${number(w, 0)} × ${number(h2, 0)}`), " · ", t("{megapixels} megapixels", { megapixels: number((w * h2) / 1e6, w * h2 < 1e6 ? 2 : 1) })];
}

function price(answer, total, count) {
  const there = bench.me?.team.credits ?? answer.creditsAvailable;
  const enough = total <= there && (answer.budgetAvailable === null || total <= answer.budgetAvailable);
  const parts = [h("strong", credits(total)), " · ", t("{credits} left after it", { credits: number(Math.max(there - total, 0)) })];
  if (answer.estimatedSeconds) parts.push(" · ", t("about {time}", { time: duration(answer.estimatedSeconds * count) }));
  if (!enough) return [h("span.wrong", total > there ? t("This costs {credits}; {there} are there.", { credits: credits(total), there: number(there) }) : t("This is more than this key may spend this month."))];
  return parts;
}

export const duration = (seconds) => (seconds < 90 ? t("{n} s", { n: number(Math.max(1, seconds), 0) }) : t("{n} min", { n: number(seconds / 60, 0) }));

let sending = false;

export async function run() {
  if (!work.pictures.size) return say(t("Choose a picture first."), "warn");
  if (!api.hasKey()) return askForKey();
  if (sending) return;
  sending = true; // a button that is disabled would lose the focus
  say("");
  const sets = bench.controls.variants(variantCount(), $("variant-by").value);
  const pictures = wanted();
  const refusals = [];
  Object.assign(bench, { left: null, right: null });
  try {
    for (const picture of pictures) {
      try {
        await submitAll(picture, sets);
      } catch (error) {
        if (!(error instanceof api.ApiError)) throw error;
        refusals.push(h("p", pictures.length > 1 && h("strong", picture.name, ": "), error.text));
        if (error.status !== 400) break; // else it is this picture's fault, and the others go on
      }
    }
    refreshMeSoon();
    if (matchMedia("(max-width: 60rem)").matches) $("stage").scrollIntoView({ block: "start" });
  } finally {
    if (refusals.length) say(h("div", refusals), "bad");
    sending = false;
    redraw();
  }
}

async function submitAll(picture, sets) {
  const about = { preset: bench.controls.preset?.id ?? null, group: `${picture.id}-${Date.now()}` };
  for (const params of sets) await work.submit(bench.controls.model, picture, params, about);
}

export function drawVariants() {
  const select = $("variant-by");
  const names = bench.controls.variable();
  const before = bench.varied && names.includes(bench.varied) ? bench.varied : names[0];
  fillWith(select, names.map((name) => h("option", { value: name, selected: name === before }, nameOf(name))));
  const possible = names.length > 0;
  $("variants").hidden = !possible;
  if (!possible) $("variant-count").value = "1";
  select.disabled = variantCount() < 2;
  $("variants-badge").hidden = variantCount() < 2;
  $("variants-badge").textContent = variantCount();
  $("variant-values").textContent = variantCount() < 2 ? "" : `${nameOf(select.value)}: ${bench.controls.spread(variantCount(), select.value).map((value) => shown(select.value, value)).join(" · ")}`;
}

export function drawCode() {
  if (!bench.controls) return;
  const picture = selected();
  const image = picture?.upload ?? picture?.url ?? "https://example.com/picture.jpg";
  $("snippet").textContent = program(bench.language, work.body(bench.controls.model, image, bench.controls.params()));
  for (const name of LANGUAGES) {
    const chosen = name === bench.language;
    $(`tab-${name}`).setAttribute("aria-selected", chosen);
    $(`tab-${name}`).tabIndex = chosen ? 0 : -1;
  }
  $("snippet").setAttribute("aria-labelledby", `tab-${bench.language}`);
}

export function listenToCode() {
  for (const name of LANGUAGES) {
    $(`tab-${name}`).addEventListener("click", () => {
      bench.language = name;
      drawCode();
      remember();
    });
  }
  arrows($("tab-curl").parentElement);
  $("copy").hidden = !navigator.clipboard; // which exists under https and on loopback only
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText($("snippet").textContent);
    say(t("Copied. Put your key into HIRESFIX_API_KEY."));
  });
}
