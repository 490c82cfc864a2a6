// Adding images: by choosing, dropping or pasting files, by taking a photo, or from a URL.

import * as api from "./api.js";
import { $, PAGE_DATA } from "./dom.js";
import { t } from "./i18n.js";
import { askForKey } from "./session.js";
import { jobs, selectImage, showErrors, showNotice } from "./store.js";

const IMAGE_NAME = /\.(heic|heif|avif|tiff?|bmp)$/i; // browsers may know no type for these
const HTTP_URL = /^https?:\/\/\S+$/i;

const isImage = (/** @type {File} */ file) =>
  file.type.startsWith("image/") || IMAGE_NAME.test(file.name) || !file.type;

export async function addFiles(/** @type {Iterable<File>} */ files) {
  const candidates = [...files];
  const images = candidates.filter(isImage);
  if (!images.length) {
    const message = t("This is not an image. Choose a PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC file.");
    if (candidates.length) showNotice(message, "bad");
    return;
  }
  const added = [];
  for (const file of images) added.push(await jobs.addImage({ name: file.name || t("Pasted image"), blob: file }));
  showNotice("");
  selectImage(added[0].id);
}

/** Let the server fetch the URL in the form. */
export async function addFromUrl(/** @type {Event} */ event) {
  event.preventDefault();
  const field = $("url");
  const url = field.value.trim();
  if (!HTTP_URL.test(url)) {
    showNotice(t("This is not an image URL. Enter one that starts with https://."), "bad");
    field.focus();
    return;
  }
  if (!api.hasKey()) {
    askForKey();
    return;
  }
  const image = await jobs.addImage({ name: url.split(/[?#]/)[0].split("/").pop() || url, url });
  selectImage(image.id);
  field.value = "";
  if (!(await showErrors(() => jobs.upload(image)))) {
    jobs.removeImage(image.id);
    selectImage([...jobs.images.keys()][0] ?? null);
    field.value = url;
  }
}

export async function addSample() {
  const name = t("Sample");
  const blob = await showErrors(() => api.fetchFile(PAGE_DATA.sampleUrl));
  if (blob) await addFiles([new File([blob], `${name}.jpg`, { type: blob.type })]);
}

function submitUrl(/** @type {string} */ url) {
  $("url").value = url;
  $("url-form").requestSubmit();
}

/** Accept files and URLs that are dropped anywhere on the page, or pasted outside of a field. */
export function listenForDrops() {
  let depth = 0; // elements entered and not left yet
  const hasFiles = (/** @type {DragEvent} */ event) =>
    ["Files", "text/uri-list"].some((type) => event.dataTransfer?.types.includes(type));
  const setDepth = (/** @type {number} */ value) => {
    depth = value;
    $("drop-overlay").hidden = depth <= 0;
  };
  addEventListener("dragenter", (event) => hasFiles(event) && setDepth(depth + 1));
  addEventListener("dragleave", (event) => hasFiles(event) && setDepth(depth - 1));
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    const data = event.dataTransfer;
    if (!data || !hasFiles(event)) return;
    event.preventDefault();
    setDepth(0);
    const urls = data.getData("text/uri-list");
    if (data.files.length) addFiles(data.files);
    else if (urls) submitUrl(urls.split("\n")[0]);
  });
  addEventListener("paste", (event) => {
    const target = /** @type {Element} */ (event.target);
    const data = event.clipboardData;
    if (!data || target.closest("input, textarea")) return;
    const text = data.getData("text/plain").trim();
    if (data.files.length) addFiles([...data.files]);
    else if (HTTP_URL.test(text)) submitUrl(text);
  });
}
