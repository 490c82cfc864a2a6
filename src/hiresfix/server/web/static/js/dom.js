// DOM helpers. Elements are never built from markup text, so text from a server or a user cannot become markup.

/** @type {<K extends string>(id: K) => K extends keyof PageElements ? PageElements[K] : HTMLElement} */
export const $ = (id) => /** @type {any} */ (document.getElementById(id));

/** @type {PageData} */
export const PAGE_DATA = JSON.parse($("page-data").textContent);

const isShown = (/** @type {unknown} */ child) => child !== null && child !== undefined && child !== false;

/** @type {(children: Child[]) => (Node | string)[]} */
const flatten = (children) => /** @type {any} */ (children).flat(9).filter(isShown);

/**
 * Create an element: `h("p.muted", { title: "..." }, "text")`. Functions named `on...` become listeners.
 * @template {string} T
 * @param {T} tag a tag name, followed by classes
 * @param {ElementProperties | Child} [properties] may be left out
 * @param {Child[]} children
 * @returns {ElementOf<T>}
 */
export function h(tag, properties, ...children) {
  if (properties?.constructor !== Object) {
    children.unshift(/** @type {Child} */ (properties));
    properties = {};
  }
  const [name, ...classes] = tag.split(".");
  const element = /** @type {any} */ (document.createElement(name));
  if (name === "button") element.type = "button"; // the default would be "submit"
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (!isShown(value)) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && !key.includes("-") && key !== "list") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...flatten(children));
  return element;
}

/** Create a line icon from a path in a 24 × 24 box. */
export function icon(/** @type {string} */ path) {
  const svg = /** @type {Element} */ (cloneTemplate("icon"));
  svg.firstElementChild?.setAttribute("d", path);
  return svg;
}

/** Clone the only element of a `<template>`. */
export function cloneTemplate(/** @type {string} */ id) {
  const template = /** @type {HTMLTemplateElement} */ ($(id));
  return /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true));
}

/**
 * Create an icon button with an accessible name.
 * @param {string} label
 * @param {string} path
 * @param {() => unknown} onclick
 * @param {ElementProperties} [more]
 */
export const iconButton = (label, path, onclick, more = {}) =>
  h("button.tool", { "aria-label": label, title: label, onclick, ...more }, icon(path));

/** @type {(element: Element, ...children: Child[]) => void} */
export function setChildren(element, ...children) {
  element.replaceChildren(...flatten(children).filter(Boolean));
}

/**
 * Set the children only if they look different, because live regions announce every replacement.
 * @type {(element: Element, ...children: Child[]) => void}
 */
export function updateChildren(element, ...children) {
  const next = /** @type {Element} */ (element.cloneNode(false));
  setChildren(next, ...children);
  if (!next.isEqualNode(element)) element.replaceChildren(...next.childNodes);
}

/** Return true if an input method is composing text: such a key must neither submit nor trigger a shortcut. */
export const isComposing = (/** @type {KeyboardEvent} */ event) => event.isComposing || event.keyCode === 229;

/** Open a dialog. The browser returns the focus when it closes. */
export function openDialog(/** @type {HTMLDialogElement} */ dialog) {
  if (!dialog.open) dialog.showModal();
}

/** Close dialogs with a click on the backdrop or on a `data-close` button. */
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      const target = /** @type {Element} */ (event.target);
      if (target === dialog || target.closest("[data-close]")) dialog.close();
    });
  }
}

/** Let arrow keys move along a tab list and activate the tab they reach. */
export function enableArrowKeys(/** @type {Element} */ tabList) {
  tabList.addEventListener("keydown", (event) => {
    const { key, target } = /** @type {KeyboardEvent} */ (event);
    const step = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1 })[key];
    if (!step) return;
    const tabs = /** @type {HTMLElement[]} */ ([...tabList.children]);
    const next = tabs.at((tabs.indexOf(/** @type {HTMLElement} */ (target)) + step) % tabs.length);
    next?.click();
    next?.focus();
  });
}

/** Return a function that calls `callback` once no further call came for some time. */
export function debounce(/** @type {number} */ milliseconds, /** @type {() => unknown} */ callback) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(callback, milliseconds);
  };
}
