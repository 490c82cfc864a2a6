// Making elements. No markup is ever made from text, so nothing that a server or a user says can become some.

export const $ = (id) => document.getElementById(id);

/** What the page tells its scripts: addresses, and words by parameter and state. */
export const FACTS = JSON.parse($("facts").textContent);

/** An element: properties by name, `on...` listeners, other attributes, all of it if need be; then its children. */
export function h(tag, properties, ...children) {
  if (properties?.constructor !== Object) [properties, children] = [{}, [properties, ...children]];
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (name === "button") element.type = "button"; // what submits says so
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && !key.includes("-") && key !== "list") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A line icon of 24 units, from its path. */
export function icon(path) {
  const svg = $("icon").content.firstElementChild.cloneNode(true);
  svg.firstElementChild.setAttribute("d", path);
  return svg;
}

/** A button that shows an icon and says what it does. */
export const tool = (label, path, onclick, more = {}) => h("button.tool", { "aria-label": label, title: label, onclick, ...more }, icon(path));

/** Put the children in place of what is there. */
export function fillWith(element, ...children) {
  element.replaceChildren(...children.flat(9).filter(Boolean));
}

/** Whether a key press belongs to an input method that is still composing: it submits and commands nothing. */
export const composing = (event) => event.isComposing || event.keyCode === 229;

/** Open a dialog; focus goes back to who opened it, because browsers see to that. A click beside it closes it. */
export function open(dialog) {
  if (!dialog.open) dialog.showModal();
}

export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    });
  }
}

/** Put the children in place of what is there, unless that looks the same: live regions speak up for what is new. */
export function fillIfNew(element, ...children) {
  const next = element.cloneNode(false);
  fillWith(next, ...children);
  if (!next.isEqualNode(element)) element.replaceChildren(...next.childNodes);
}

/** Arrow keys move along a list of tabs, and what they come to is chosen. */
export function arrows(list) {
  list.addEventListener("keydown", ({ key, target }) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (!step) return;
    const tabs = [...list.children];
    const next = tabs.at((tabs.indexOf(target) + step) % tabs.length);
    next.click();
    next.focus();
  });
}

export function debounced(milliseconds, work) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds, ...given);
  };
}
