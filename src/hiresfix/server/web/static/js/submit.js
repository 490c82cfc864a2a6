// The submit button, the estimate above it (sizes, price, time), and the variants.

import * as api from "./api.js";
import { formatValue, paramLabel } from "./controls.js";
import { $, debounce, h, setChildren, updateChildren } from "./dom.js";
import { formatCredits, formatDuration, formatSize } from "./format.js";
import { formatNumber, t, tn } from "./i18n.js";
import { askForKey, refreshMeSoon } from "./session.js";
import { drawCode } from "./snippets.js";
import { jobs, redraw, selectedImage, showNotice, store } from "./store.js";

const variantCount = () => Number($("variant-count").value);

/** Return a key of everything that an estimate depends on. */
function estimateKey() {
  const { controls, selected } = store;
  return [selected, jobs.images.size, controls.model.id, controls.scale, controls.valueOf("output_format")].join();
}

export const isEstimateCurrent = () => store.controls && store.estimate?.key === estimateKey();

export function updateEstimate() {
  drawEstimate();
  drawCode();
  loadEstimate();
}

const loadEstimate = debounce(200, async () => {
  const image = selectedImage();
  if (!image || !api.hasKey() || !store.controls) return;
  const key = estimateKey();
  if (store.estimate?.key === key && store.estimate.answer) return;
  try {
    const { output_format, scale_factor } = store.controls.values;
    const entries = Object.entries({ output_format, scale_factor }).filter(([, value]) => value !== undefined);
    const params = Object.fromEntries(entries);
    const answer = await jobs.estimate(store.controls.model, image, params);
    const totalCost = await costBySize(image, answer, params);
    if (key !== estimateKey()) return;
    store.estimate = { key, answer, totalCost };
    if (!image.width) Object.assign(image, answer.input);
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (key !== estimateKey()) return;
    store.estimate = { key, error };
  }
  drawEstimate();
  drawCode();
});

/**
 * Return the total cost of all images if the price depends on their sizes; otherwise null.
 * @type {(image: SourceImage, answer: Estimate, params: Params) => Promise<number | null>}
 */
async function costBySize(image, { creditCost }, params) {
  const { model } = store.controls;
  if (model.pricingMode === "flat") return null;
  let total = creditCost;
  for (const other of imagesToSubmit()) {
    if (other === image) continue;
    const answer = await jobs.estimate(model, other, params).catch(() => null);
    total += answer?.creditCost ?? 0;
  }
  return total;
}

/** Return all images, without those the server rejected unless it rejected all. */
function imagesToSubmit() {
  const images = [...jobs.images.values()];
  const accepted = images.filter((image) => image.error?.status !== 400);
  return accepted.length ? accepted : images;
}

/** Draw the button and the estimate. */
export function drawEstimate() {
  const imageCount = imagesToSubmit().length;
  const jobCount = imageCount * variantCount();
  $("run").textContent = buttonLabel(imageCount, jobCount);
  $("run").setAttribute("aria-disabled", String(!selectedImage()));
  updateChildren($("estimate"), estimateContent(imageCount, jobCount));
}

/** @type {(imageCount: number, jobCount: number) => string} */
function buttonLabel(imageCount, jobCount) {
  if (variantCount() > 1) return tn("Create {n} variant", "Create {n} variants", jobCount);
  return imageCount > 1 ? tn("Upscale {n} image", "Upscale {n} images", imageCount) : t("Upscale");
}

/** @type {(imageCount: number, jobCount: number) => Child} */
function estimateContent(imageCount, jobCount) {
  const image = selectedImage();
  if (!image) return h("p.muted", t("Choose an image to see the size and price."));
  if (!api.hasKey()) return [h("p", sizes(image)), h("p.muted.small", t("Sign in to see the price."))];
  const { answer, error, totalCost } = (isEstimateCurrent() && store.estimate) || {};
  if (error) return [h("p.error", error.summary), error.detail && h("p.small", error.detail)];
  if (answer) {
    const cost = totalCost ?? answer.creditCost * imageCount;
    return [h("p", sizes(image, answer)), h("p.small", price(answer, cost * variantCount(), jobCount))];
  }
  const status = image.busy ? t("Uploading…") : t("Getting the price…");
  return [h("p", sizes(image)), h("p.small", h("span.muted", status))];
}

/** @type {(image: SourceImage, answer?: Estimate) => Child} */
function sizes(image, answer) {
  const { width, height } = answer?.input ?? image;
  if (!width) return image.name;
  const { scale } = store.controls;
  const output = answer?.output ?? { width: width * scale, height: height * scale };
  const pixels = output.width * output.height;
  const megapixels = formatNumber(pixels / 1e6, pixels < 1e6 ? 2 : 1);
  const size = h("strong", formatSize(output.width, output.height));
  return [`${formatSize(width, height)} → `, size, " · ", t("{megapixels} megapixels", { megapixels })];
}

/** @type {(answer: Estimate, total: number, jobCount: number) => Child} */
function price(answer, total, jobCount) {
  const available = store.me?.team.credits ?? answer.creditsAvailable;
  const credits = formatCredits(total);
  if (total > available) {
    const values = { credits, available: formatNumber(available) };
    return h("span.error", t("This costs {credits}, but you have {available}.", values));
  }
  if (answer.budgetAvailable !== null && total > answer.budgetAvailable) {
    return h("span.error", t("This exceeds the monthly budget of this key."));
  }
  const left = t("{credits} left afterwards", { credits: formatNumber(available - total) });
  const time = answer.estimatedSeconds && formatDuration(answer.estimatedSeconds * jobCount);
  return [h("strong", credits), " · ", left, time ? [" · ", t("about {time}", { time })] : ""];
}

let isSubmitting = false;

/** Submit a job for each image and variant. */
export async function submitAll() {
  if (!jobs.images.size) return showNotice(t("Choose an image first."), "warn");
  if (!api.hasKey()) return askForKey();
  if (isSubmitting) return;
  isSubmitting = true; // instead of disabling the button, which would lose the focus
  showNotice("");
  const variants = store.controls.variants(variantCount(), $("variant-param").value);
  Object.assign(store, { left: null, right: null });
  /** @type {Child[]} */
  let problems = [];
  try {
    problems = await submitImages(imagesToSubmit(), variants);
    refreshMeSoon();
    if (matchMedia("(max-width: 60rem)").matches) $("preview").scrollIntoView({ block: "start" });
  } finally {
    if (problems.length) showNotice(h("div", problems), "bad");
    isSubmitting = false;
    redraw();
  }
}

/** Submit the variants of each image. Returns the problems to show. */
async function submitImages(/** @type {SourceImage[]} */ images, /** @type {Params[]} */ variants) {
  const problems = [];
  for (const image of images) {
    try {
      await submitVariants(image, variants);
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error;
      problems.push(h("p", images.length > 1 && h("strong", image.name, ": "), error.content));
      if (error.status !== 400) break; // otherwise only this image is to blame
    }
  }
  return problems;
}

async function submitVariants(/** @type {SourceImage} */ image, /** @type {Params[]} */ variants) {
  const { model, preset } = store.controls;
  const details = { preset: preset?.id ?? null, group: `${image.id}-${Date.now()}` };
  for (const params of variants) await jobs.submit(model, image, params, details);
}

export function drawVariants() {
  const select = $("variant-param");
  const names = store.controls.variantParams();
  const chosen = names.find((name) => name === store.variantParam) ?? names[0];
  const options = names.map((name) => h("option", { value: name, selected: name === chosen }, paramLabel(name)));
  setChildren(select, options);
  $("variants").hidden = !names.length;
  if (!names.length) $("variant-count").value = "1";
  const count = variantCount();
  select.disabled = count < 2;
  $("variants-badge").hidden = count < 2;
  $("variants-badge").textContent = String(count);
  $("variant-values").textContent = count < 2 ? "" : describeVariants(count, select.value);
}

function describeVariants(/** @type {number} */ count, /** @type {string} */ name) {
  const values = store.controls.variantValues(count, name).map((value) => formatValue(name, value));
  return `${paramLabel(name)}: ${values.join(" · ")}`;
}
