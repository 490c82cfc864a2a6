// How pictures come in: chosen, dropped, pasted, photographed, fetched from an address.

import * as api from "./api.js";
import { guarded, say, select, work } from "./bench.js";
import { $, FACTS } from "./dom.js";
import { askForKey } from "./session.js";
import { t } from "./text.js";

export async function take(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || /\.(heic|heif|avif|tiff?|bmp)$/i.test(file.name) || !file.type);
  if (!pictures.length) {
    if (files.length) say(t("That is no picture. Choose a PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC file."), "bad");
    return;
  }
  let last = null;
  for (const file of pictures) {
    const added = await work.add({ name: file.name || t("Pasted picture"), blob: file });
    last ??= added;
  }
  say("");
  select(last.id);
}

export async function takeAddress(event) {
  event.preventDefault();
  const field = $("url");
  if (!/^https?:\/\/\S+$/i.test(field.value.trim())) {
    say(t("That is no address of a picture. It begins with https://."), "bad");
    field.focus();
    return;
  }
  if (!api.hasKey()) return askForKey();
  const url = field.value.trim();
  const picture = await work.add({ name: url.split(/[?#]/)[0].split("/").pop() || url, url });
  select(picture.id);
  field.value = "";
  if (!(await guarded(() => work.uploaded(picture)))) {
    work.removePicture(picture.id);
    select(work.pictures.keys().next().value ?? null);
    field.value = url;
  }
}

export async function takeSample() {
  const blob = await guarded(() => api.file(FACTS.sample));
  if (blob) await take([new File([blob], t("Sample") + ".jpg", { type: blob.type })]);
}

export function listenToDrops() {
  let depth = 0;
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].some((type) => type === "Files" || type === "text/uri-list");
  const show = (on) => ($("dropping").hidden = !on);
  addEventListener("dragenter", (event) => holdsFiles(event) && show(++depth > 0));
  addEventListener("dragleave", (event) => holdsFiles(event) && show(--depth > 0));
  addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    show((depth = 0));
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
    else if (event.dataTransfer.getData("text/uri-list")) {
      $("url").value = event.dataTransfer.getData("text/uri-list").split("\n")[0];
      $("url-form").requestSubmit();
    }
  });
  addEventListener("paste", (event) => {
    if (event.target.closest("input, textarea")) return;
    const files = [...event.clipboardData.files];
    const text = event.clipboardData.getData("text/plain").trim();
    if (files.length) take(files);
    else if (/^https?:\/\/\S+$/.test(text)) {
      $("url").value = text;
      $("url-form").requestSubmit();
    }
  });
}
