// The current settings as code that runs. The page brings the programs; the request goes into their placeholder.

import { $, enableArrowKeys, PAGE_DATA } from "./dom.js";
import { t } from "./i18n.js";
import { jobs, saveSettings, selectedImage, showNotice, store } from "./store.js";

const EXAMPLE_URL = "https://example.com/image.jpg";
const LANGUAGES = Object.keys(PAGE_DATA.snippets);

/**
 * Put a request into the program of a language. JSON with only strings and numbers is valid JavaScript and Python.
 * @param {string} language
 * @param {object} request
 */
function snippet(language, request) {
  const json = JSON.stringify(request, null, 2);
  const code = language === "curl" ? `'${json.replaceAll("'", `'\\''`)}'` : json;
  return PAGE_DATA.snippets[language].replace(PAGE_DATA.requestPlaceholder, () => code);
}

export function drawCode() {
  if (!store.controls) return;
  const image = selectedImage();
  const url = image?.upload ?? image?.url ?? EXAMPLE_URL;
  const request = jobs.requestBody(store.controls.model, url, store.controls.params());
  $("snippet").textContent = snippet(store.codeLanguage, request);
  $("snippet").setAttribute("aria-labelledby", `tab-${store.codeLanguage}`);
  for (const language of LANGUAGES) {
    const isSelected = language === store.codeLanguage;
    $(`tab-${language}`).setAttribute("aria-selected", String(isSelected));
    $(`tab-${language}`).tabIndex = isSelected ? 0 : -1;
  }
}

export function listenForCode() {
  for (const language of LANGUAGES) {
    $(`tab-${language}`).addEventListener("click", () => {
      store.codeLanguage = language;
      drawCode();
      saveSettings();
    });
  }
  enableArrowKeys($("code-tabs"));
  $("copy").hidden = !navigator.clipboard; // exists only on https and on loopback
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText($("snippet").textContent ?? "");
    showNotice(t("Copied. Set HIRESFIX_API_KEY to your API key."));
  });
}
