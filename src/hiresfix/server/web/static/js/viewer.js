// Before/after viewer: one image or up to five, under one zoom and one position. Modes: slider, side by side, hold to
// see "before", blink. Works with mouse, wheel, touch, pen and keyboard.

import { h } from "./dom.js";
import { formatNumber, t } from "./i18n.js";

const MAX_SCALE = 8; // 800%
const ZOOM_STEP = 1.25;
const BLINK_INTERVAL = 700; // milliseconds; fewer than three flashes a second (WCAG 2.3.1)
const ROUNDING = 1.001; // scales this close count as equal
const NEW_SHAPE = 0.02; // difference between the aspect ratios of two images

const MODE_KEYS = { slider: "s", side: "d", hold: "h", blink: "b" };

/** @type {Record<string, number>} percent to move the slider by */
const SPLIT_STEPS = {
  ArrowLeft: -2,
  ArrowDown: -2,
  ArrowRight: 2,
  ArrowUp: 2,
  PageDown: -10,
  PageUp: 10,
  Home: -100,
  End: 100,
};

/** @type {Record<string, [number, number]>} pixels to move the image by */
export const PAN_STEPS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

const clamp = (/** @type {number} */ value, /** @type {number} */ low, /** @type {number} */ high) =>
  Math.min(Math.max(value, low), high);

const hasModifier = (/** @type {KeyboardEvent} */ event) =>
  event.ctrlKey || event.metaKey || event.altKey || event.shiftKey;

/** @typedef {keyof typeof MODE_KEYS | "single"} Mode */

export class Viewer {
  /**
   * @param {HTMLElement} container of the images
   * @param {HTMLElement} toolbar with the buttons
   * @param {(text: string) => void} announce tells screen readers
   */
  constructor(container, toolbar, announce) {
    const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (container.querySelector(selector));
    this.container = container;
    this.announce = announce;
    this.surface = find(".surface");
    this.views = find(".views");
    this.handle = find(".handle");
    this.extra = /** @type {HTMLElement} */ (toolbar.querySelector(".extra")); // room for controls of others
    this.modeButtons = /** @type {HTMLButtonElement[]} */ ([...toolbar.querySelectorAll("[data-mode]")]);
    this.zoomOutButton = this.#connect(toolbar, "zoom-out", () => this.zoom(1 / ZOOM_STEP));
    this.zoomInButton = this.#connect(toolbar, "zoom-in", () => this.zoom(ZOOM_STEP));
    this.percentButton = this.#connect(toolbar, "zoom-100", () => this.zoomTo(1));
    this.#connect(toolbar, "fit", () => this.zoomToFit());
    this.#connect(toolbar, "full-screen", () => this.toggleFullScreen());
    /** @type {Mode} */
    this.mode = "slider";
    /** @type {Pane[]} */
    this.panes = [];
    this.split = 50; // percent of the slider
    this.width = 0;
    this.height = 0;
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.fitted = true; // the whole image is in view
    this.showsBefore = false;
    this.blinkTimer = 0;
    this.isDraggingHandle = false;
    this.isClick = false; // the pointer is down and has not moved
    /** @type {Map<number, PointerEvent>} last event of each pointer that is down */
    this.pointers = new Map();
    this.#listen();
    new ResizeObserver(() => this.#layout()).observe(container);
  }

  /** Show images, "before" first. Zoom and position stay if the shape is the same. */
  show(/** @type {Pane[]} */ panes) {
    const width = Math.max(...panes.map((pane) => pane.width));
    const height = Math.max(...panes.map((pane) => pane.height));
    const isSame = panes.length === this.panes.length && panes.every(({ url }, index) => url === this.panes[index].url);
    const isNewShape = !this.panes.length || Math.abs(width / height - this.width / this.height) > NEW_SHAPE;
    if (width !== this.width && !isNewShape && !this.fitted) this.scale *= this.width / width; // keep the same detail
    this.width = width;
    this.height = height;
    this.panes = panes;
    if (isNewShape) this.fitted = true;
    if (isSame) return this.#layout();
    this.#render();
    this.setMode(this.mode === "single" ? "slider" : this.mode);
  }

  clear() {
    this.panes = [];
    this.views.replaceChildren();
    this.handle.hidden = true;
    this.#stopBlinking();
  }

  /** Set the mode. One image is always "single", more than two are always "side". */
  setMode(/** @type {Mode} */ mode) {
    this.#stopBlinking();
    const count = this.panes.length;
    this.mode = mode;
    if (count < 2) this.mode = "single";
    else if (count > 2) this.mode = "side";
    this.container.dataset.mode = this.mode;
    this.container.dataset.count = String(count);
    this.#setBefore(false);
    this.handle.hidden = this.mode !== "slider";
    for (const button of this.modeButtons) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === this.mode));
      button.disabled = count !== 2 && !(count > 2 && button.dataset.mode === "side");
    }
    if (this.mode === "blink") this.blinkTimer = setInterval(() => this.#setBefore(!this.showsBefore), BLINK_INTERVAL);
    this.#layout();
  }

  // Zoom and position

  /**
   * Zoom about a point of the view, by default its centre.
   * @param {number} factor
   * @param {[number, number]} [point]
   */
  zoom(factor, point) {
    const view = this.#view();
    const [px, py] = point ?? [view.width / 2, view.height / 2];
    const scale = clamp(this.scale * factor, this.fit, Math.max(MAX_SCALE, this.fit));
    const ratio = scale / this.scale;
    this.x = px - (px - this.x) * ratio;
    this.y = py - (py - this.y) * ratio;
    this.scale = scale;
    this.fitted = scale <= this.fit * ROUNDING;
    this.#applyTransform();
  }

  zoomTo(/** @type {number} */ scale) {
    this.zoom(scale / this.scale);
  }

  zoomToFit() {
    this.fitted = true;
    this.#layout();
  }

  pan(/** @type {number} */ dx, /** @type {number} */ dy) {
    this.x += dx;
    this.y += dy;
    this.#applyTransform();
  }

  setSplit(/** @type {number} */ percent) {
    this.split = clamp(percent, 0, 100);
    this.container.style.setProperty("--split", `${this.split}%`);
    const rounded = Math.round(this.split);
    const [before, after] = [...this.panes.map((pane) => pane.label), "", ""];
    this.handle.ariaValueNow = String(rounded);
    this.handle.ariaValueText = t("{percent}% {before}, the rest {after}", { percent: rounded, before, after });
  }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.container.closest(".preview")?.requestFullscreen?.();
  }

  /** Show "before" while a key is down. */
  showBefore(/** @type {boolean} */ isDown) {
    if (this.panes.length === 2 && !["side", "blink"].includes(this.mode)) this.#setBefore(isDown);
  }

  /** Handle a key of the page. Returns true if it is a shortcut of the viewer. */
  handleKey(/** @type {string} */ key) {
    if (!this.panes.length) return false;
    const modes = /** @type {(keyof typeof MODE_KEYS)[]} */ (Object.keys(MODE_KEYS));
    const mode = modes.find((name) => MODE_KEYS[name] === key.toLowerCase());
    if (mode && this.panes.length === 2) {
      this.setMode(mode);
      this.announce(this.modeButtons.find((button) => button.dataset.mode === mode)?.ariaLabel ?? "");
    } else if (key === "+" || key === "=") this.zoom(ZOOM_STEP);
    else if (key === "-" || key === "_") this.zoom(1 / ZOOM_STEP);
    else if (key === "0") this.zoomToFit();
    else if (key === "1") this.zoomTo(1);
    else if (key === "8") this.zoomTo(MAX_SCALE);
    else if (key.toLowerCase() === "f") this.toggleFullScreen();
    else return false;
    return true;
  }

  // Drawing

  /** Run an action with a button of the toolbar. Returns the button. */
  #connect(/** @type {HTMLElement} */ toolbar, /** @type {string} */ command, /** @type {() => void} */ action) {
    const button = /** @type {HTMLButtonElement} */ (toolbar.querySelector(`[data-command="${command}"]`));
    button.addEventListener("click", action);
    return button;
  }

  #render() {
    this.views.replaceChildren(...this.panes.map(renderPane));
    this.setSplit(this.split);
  }

  /** Return the box of a view: all views have the same size. */
  #view() {
    return (this.views.firstElementChild ?? this.views).getBoundingClientRect();
  }

  /** The scale at which the whole image is in view. */
  get fit() {
    const { width, height } = this.#view();
    return Math.min(width / this.width, height / this.height, MAX_SCALE) || 1;
  }

  #layout() {
    if (!this.panes.length) return;
    if (this.fitted || this.scale < this.fit) this.scale = this.fit;
    this.#applyTransform();
  }

  /** Apply one scale and position to all images, so that they stay aligned. */
  #applyTransform() {
    const view = this.#view();
    this.x = keepInView(this.x, this.width * this.scale, view.width);
    this.y = keepInView(this.y, this.height * this.scale, view.height);
    const { style } = this.container;
    style.setProperty("--width", `${this.width}px`);
    style.setProperty("--height", `${this.height}px`);
    style.setProperty("--scale", String(this.scale));
    style.setProperty("--x", `${this.x}px`);
    style.setProperty("--y", `${this.y}px`);
    this.container.toggleAttribute("data-zoomed", !this.fitted);
    this.container.toggleAttribute("data-pixels", this.scale >= 4);
    const percent = formatNumber(this.scale * 100, 0);
    this.percentButton.textContent = `${percent}%`;
    this.percentButton.setAttribute("aria-label", t("{percent}%, show at 100%", { percent }));
    this.zoomOutButton.ariaDisabled = String(this.scale <= this.fit * ROUNDING);
    this.zoomInButton.ariaDisabled = String(this.scale >= Math.max(MAX_SCALE, this.fit) / ROUNDING);
  }

  #setBefore(/** @type {boolean} */ showsBefore) {
    this.showsBefore = showsBefore;
    this.container.toggleAttribute("data-before", showsBefore);
  }

  #stopBlinking() {
    clearInterval(this.blinkTimer);
    this.blinkTimer = 0;
  }

  // Pointers and keys

  #listen() {
    const { container, surface, handle } = this;
    for (const button of this.modeButtons) {
      button.addEventListener("click", () => this.setMode(/** @type {Mode} */ (button.dataset.mode)));
    }
    container.addEventListener("wheel", (event) => this.#onWheel(event), { passive: false });
    surface.addEventListener("dblclick", (event) => this.#onDoubleClick(event));
    surface.addEventListener("pointerdown", (event) => this.#onPointerDown(event));
    surface.addEventListener("pointermove", (event) => this.#onPointerMove(event));
    surface.addEventListener("pointerup", (event) => this.#onPointerUp(event));
    surface.addEventListener("pointercancel", (event) => this.#onPointerUp(event));
    surface.addEventListener("keydown", (event) => this.#onSurfaceKey(event));
    handle.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      handle.setPointerCapture(event.pointerId);
      this.isDraggingHandle = true;
    });
    handle.addEventListener("pointermove", (event) => this.isDraggingHandle && this.#splitAt(event));
    const stopDragging = () => {
      this.isDraggingHandle = false;
    };
    handle.addEventListener("pointerup", stopDragging);
    handle.addEventListener("pointercancel", stopDragging);
    handle.addEventListener("keydown", (event) => this.#onHandleKey(event));
  }

  /**
   * Return the position of the pointer in its view.
   * @param {MouseEvent} event
   * @returns {[number, number]}
   */
  #pointInView(event) {
    const target = /** @type {Element} */ (event.target);
    const box = (target.closest(".view") ?? this.surface).getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #splitAt(/** @type {PointerEvent} */ event) {
    const { left, width } = this.#view();
    this.setSplit(((event.clientX - left) / width) * 100);
  }

  #onWheel(/** @type {WheelEvent} */ event) {
    event.preventDefault();
    let speed = event.deltaMode ? 0.05 : 0.0018; // lines or pixels
    if (event.ctrlKey) speed = 0.01; // pinching on a touchpad
    this.zoom(Math.exp(-event.deltaY * speed), this.#pointInView(event));
  }

  #onDoubleClick(/** @type {MouseEvent} */ event) {
    if (this.fitted) this.zoom(Math.max(1, this.fit * 2) / this.scale, this.#pointInView(event));
    else this.zoomToFit();
  }

  #onPointerDown(/** @type {PointerEvent} */ event) {
    const target = /** @type {Element} */ (event.target);
    if (event.button || !this.panes.length || target.closest("button")) return;
    this.surface.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.isClick = this.pointers.size === 1;
    if (this.mode === "hold" && this.isClick && this.fitted) this.#setBefore(true);
  }

  #onPointerMove(/** @type {PointerEvent} */ event) {
    const previous = this.pointers.get(event.pointerId);
    if (!previous) return;
    this.pointers.set(event.pointerId, event);
    if (event.movementX || event.movementY) this.isClick = false;
    if (this.pointers.size === 2) this.#pinch(event, previous);
    else if (!this.fitted) this.pan(event.clientX - previous.clientX, event.clientY - previous.clientY);
    else if (this.mode === "slider") this.#splitAt(event);
  }

  /** Zoom and pan with two pointers, one of which moved. */
  #pinch(/** @type {PointerEvent} */ event, /** @type {PointerEvent} */ previous) {
    const other = [...this.pointers.values()].find(({ pointerId }) => pointerId !== event.pointerId) ?? event;
    const distance = (/** @type {PointerEvent} */ from) =>
      Math.hypot(from.clientX - other.clientX, from.clientY - other.clientY);
    const { left, top } = this.#view();
    const middleX = (event.clientX + other.clientX) / 2 - left;
    const middleY = (event.clientY + other.clientY) / 2 - top;
    this.zoom(distance(event) / Math.max(distance(previous), 1), [middleX, middleY]);
    this.pan((event.clientX - previous.clientX) / 2, (event.clientY - previous.clientY) / 2);
  }

  #onPointerUp(/** @type {PointerEvent} */ event) {
    const wasDown = this.pointers.delete(event.pointerId);
    const isClick = wasDown && this.isClick && event.type === "pointerup";
    // A click is the alternative to dragging (WCAG 2.5.7).
    if (isClick && this.fitted && this.mode === "slider") this.#splitAt(event);
    if (this.mode === "hold") this.#setBefore(false);
  }

  #onHandleKey(/** @type {KeyboardEvent} */ event) {
    if (!(event.key in SPLIT_STEPS) || hasModifier(event)) return;
    event.preventDefault();
    this.setSplit(this.split + SPLIT_STEPS[event.key]);
  }

  #onSurfaceKey(/** @type {KeyboardEvent} */ event) {
    if (!(event.key in PAN_STEPS) || this.fitted || hasModifier(event)) return; // with Shift: see keyboard.js
    event.preventDefault();
    this.pan(...PAN_STEPS[event.key]);
  }
}

function renderPane(/** @type {Pane} */ { label, url, onSelect }) {
  const image = h("img", { src: url, alt: label, draggable: false, decoding: "async" });
  const tag = onSelect
    ? h("button.tag", { title: t("Show only this one"), onclick: onSelect }, label)
    : h("span.tag", label);
  return h("div.view", h("div.frame", image), tag);
}

/** Return the offset that centres a small image, and leaves no gap beside a large one. */
function keepInView(/** @type {number} */ offset, /** @type {number} */ size, /** @type {number} */ viewSize) {
  return size <= viewSize ? (viewSize - size) / 2 : clamp(offset, viewSize - size, 0);
}
