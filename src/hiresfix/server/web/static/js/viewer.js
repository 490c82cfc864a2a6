// Before and after: two pictures, or up to five, under one zoom and one pan. Modes: a slider over both, side by side,
// hold to see the other one, blink. Mouse, wheel, two fingers, pen and keyboard can do all of it.

import { h } from "./dom.js";
import { number, t } from "./text.js";

const LARGEST = 8; // 800 %
const STEP = 1.25;
const BLINK = 700; // milliseconds; under three flashes a second (WCAG 2.3.1)

const MODES = { slider: "s", side: "d", hold: "h", blink: "b" };

export class Viewer {
  /** `place` gets the pictures, `bar` has the buttons. `said(text)` tells screen readers. */
  constructor(place, bar, { said }) {
    this.place = place;
    this.bar = bar;
    this.said = said;
    this.mode = "slider";
    this.panes = [];
    this.split = 50;
    this.scale = 1;
    this.x = this.y = 0;
    this.fitted = true;
    this.pointers = new Map();
    this.#build();
    this.#listen();
    new ResizeObserver(() => this.#layout()).observe(place);
  }

  /** Show pictures: `[{ label, url, width, height }]`, what was before first. The view stays where it is if it can. */
  show(panes) {
    const [width, height] = [Math.max(...panes.map((pane) => pane.width)), Math.max(...panes.map((pane) => pane.height))];
    const same = panes.length === this.panes.length && panes.every((pane, index) => pane.url === this.panes[index].url);
    const other = Math.abs(width / height - this.width / this.height) > 0.02 || !this.panes.length;
    if (width !== this.width && !other && !this.fitted) this.scale *= this.width / width; // the same spot, now larger
    [this.width, this.height, this.panes] = [width, height, panes];
    if (other) this.fitted = true;
    if (same) return this.#layout();
    this.#fill();
    this.setMode(panes.length > 2 ? "side" : panes.length < 2 ? "single" : this.mode === "single" ? "slider" : this.mode);
  }

  clear() {
    this.panes = [];
    this.views.replaceChildren();
    this.handle.hidden = true;
    this.#stopBlinking();
  }

  setMode(mode) {
    this.#stopBlinking();
    if (mode === "single" || this.panes.length < 2) mode = "single";
    else if (this.panes.length > 2) mode = "side";
    this.mode = mode;
    this.place.dataset.mode = mode;
    this.place.dataset.count = this.panes.length;
    this.#uncover(false);
    this.handle.hidden = mode !== "slider";
    for (const button of this.modes) {
      button.setAttribute("aria-pressed", button.dataset.mode === mode);
      button.disabled = this.panes.length !== 2 && !(this.panes.length > 2 && button.dataset.mode === "side");
    }
    if (mode === "blink") this.blinking = setInterval(() => this.#uncover(!this.uncovered), BLINK);
    this.#layout();
  }

  // Zoom and pan

  /** Zoom by a factor about a point of the view, its middle unless given. */
  zoom(factor, at) {
    const { width, height } = this.#view();
    const [px, py] = at ?? [width / 2, height / 2];
    const scale = Math.min(Math.max(this.scale * factor, this.fit), Math.max(LARGEST, this.fit));
    const ratio = scale / this.scale;
    this.x = px - (px - this.x) * ratio;
    this.y = py - (py - this.y) * ratio;
    this.scale = scale;
    this.fitted = scale <= this.fit * 1.001;
    this.#apply();
  }

  zoomTo(scale) {
    this.zoom(scale / this.scale);
  }

  zoomToFit() {
    this.fitted = true;
    this.#layout();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#apply();
  }

  setSplit(wanted) {
    this.split = Math.min(Math.max(wanted, 0), 100);
    this.place.style.setProperty("--split", `${this.split}%`);
    const [percent, before, after] = [Math.round(this.split), ...this.panes.map((pane) => pane.label), "", ""];
    this.handle.ariaValueNow = percent;
    this.handle.ariaValueText = t("{percent} % {before}, the rest {after}", { percent, before, after });
  }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.place.closest(".stage").requestFullscreen?.();
  }

  // Finding its parts

  #build() {
    [this.surface, this.handle] = this.place.children;
    this.views = this.surface.firstElementChild;
    this.modes = this.bar.querySelectorAll("[data-mode]");
    for (const button of this.modes) button.addEventListener("click", () => this.setMode(button.dataset.mode));
    const deeds = { out: () => this.zoom(1 / STEP), full: () => this.zoomTo(1), in: () => this.zoom(STEP), fit: () => this.zoomToFit(), screen: () => this.toggleFullScreen() };
    const buttons = this.bar.querySelectorAll("[data-do]");
    for (const button of buttons) button.addEventListener("click", deeds[button.dataset.do]);
    [this.zoomOut, this.percent, this.zoomIn] = buttons;
    this.extra = this.bar.querySelector(".extra");
  }

  #fill() {
    this.views.replaceChildren(
      ...this.panes.map((pane) => {
        const picture = h("img", { src: pane.url, alt: pane.label, draggable: false, decoding: "async" });
        const tag = pane.pick ? h("button.tag", { title: t("Keep this one"), onclick: pane.pick }, pane.label) : h("span.tag", pane.label);
        return h("div.view", h("div.frame", picture), tag);
      }),
    );
    this.setSplit(this.split);
  }

  /** The view's size: one figure's, which is the same for all. */
  #view() {
    const box = (this.views.firstElementChild ?? this.views).getBoundingClientRect();
    return { width: box.width, height: box.height, left: box.left, top: box.top };
  }

  get fit() {
    const { width, height } = this.#view();
    return Math.min(width / this.width, height / this.height, LARGEST) || 1;
  }

  #layout() {
    if (!this.panes.length) return;
    if (this.fitted || this.scale < this.fit) this.scale = this.fit;
    this.#apply();
  }

  /** One scale and one place for all pictures, so that they cannot drift apart. */
  #apply() {
    const { width, height } = this.#view();
    const [w, h2] = [this.width * this.scale, this.height * this.scale];
    this.x = w <= width ? (width - w) / 2 : Math.min(Math.max(this.x, width - w), 0);
    this.y = h2 <= height ? (height - h2) / 2 : Math.min(Math.max(this.y, height - h2), 0);
    const style = this.place.style;
    style.setProperty("--width", `${this.width}px`);
    style.setProperty("--height", `${this.height}px`);
    style.setProperty("--scale", this.scale);
    style.setProperty("--x", `${this.x}px`);
    style.setProperty("--y", `${this.y}px`);
    this.place.toggleAttribute("data-zoomed", !this.fitted);
    this.place.toggleAttribute("data-pixels", this.scale >= 4);
    this.percent.textContent = `${number(this.scale * 100, 0)} %`;
    this.percent.setAttribute("aria-label", t("{percent} %, show at 100 %", { percent: number(this.scale * 100, 0) }));
    this.zoomOut.ariaDisabled = this.scale <= this.fit * 1.001;
    this.zoomIn.ariaDisabled = this.scale >= Math.max(LARGEST, this.fit) * 0.999;
  }

  #uncover(before) {
    this.uncovered = before;
    this.place.toggleAttribute("data-before", before);
  }

  #stopBlinking() {
    clearInterval(this.blinking);
    this.blinking = 0;
  }

  // Hands

  #listen() {
    this.place.addEventListener("wheel", (event) => {
      event.preventDefault();
      const view = this.#viewAt(event);
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : event.deltaMode ? 0.05 : 0.0018)), view);
    }, { passive: false });
    this.surface.addEventListener("dblclick", (event) => (this.fitted ? this.zoom(Math.max(1, this.fit * 2) / this.scale, this.#viewAt(event)) : this.zoomToFit()));
    this.surface.addEventListener("pointerdown", (event) => this.#down(event));
    this.surface.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) this.surface.addEventListener(name, (event) => this.#up(event));
    this.handle.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.handle.setPointerCapture(event.pointerId);
      this.dragging = true;
    });
    this.handle.addEventListener("pointermove", (event) => this.dragging && this.#splitAt(event));
    for (const name of ["pointerup", "pointercancel"]) this.handle.addEventListener(name, () => (this.dragging = false));
    this.handle.addEventListener("keydown", (event) => this.#slide(event));
    this.surface.addEventListener("keydown", (event) => this.#steer(event));
  }

  #viewAt(event) {
    const box = (event.target.closest(".view") ?? this.surface).getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #splitAt(event) {
    const { left, width } = this.#view();
    this.setSplit(((event.clientX - left) / width) * 100);
  }

  #down(event) {
    if (event.button || !this.panes.length || event.target.closest("button")) return;
    this.surface.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.still = this.pointers.size === 1;
    if (this.mode === "hold" && this.still && this.fitted) this.#uncover(true);
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    this.pointers.set(event.pointerId, event);
    if (event.movementX || event.movementY) this.still = false;
    if (this.pointers.size === 2) {
      const [one, two] = this.pointers.values();
      const other = one.pointerId === event.pointerId ? two : one;
      const apart = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY);
      const { left, top } = this.#view();
      const middle = [(event.clientX + other.clientX) / 2 - left, (event.clientY + other.clientY) / 2 - top];
      this.zoom(apart(event) / Math.max(apart(before), 1), middle);
      this.pan((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
    } else if (!this.fitted) {
      this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    } else if (this.mode === "slider") {
      this.#splitAt(event);
    }
  }

  #up(event) {
    const known = this.pointers.delete(event.pointerId);
    // A click does what dragging does (WCAG 2.5.7).
    if (known && this.still && event.type === "pointerup" && this.fitted && this.mode === "slider") this.#splitAt(event);
    if (this.mode === "hold") this.#uncover(false);
  }

  #slide(event) {
    const steps = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    this.setSplit(this.split + steps[event.key]);
  }

  #steer(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return; // with Shift they are the page's
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (!(event.key in steps) || this.fitted) return;
    event.preventDefault();
    this.pan(...steps[event.key]);
  }

  /** A key that the page got; true if it meant something here. */
  press(key) {
    const mode = Object.keys(MODES).find((name) => MODES[name] === key.toLowerCase());
    if (!this.panes.length) return false;
    if (mode && this.panes.length === 2) {
      this.setMode(mode);
      this.said([...this.modes].find((button) => button.dataset.mode === mode).ariaLabel);
    } else if (key === "+" || key === "=") this.zoom(STEP);
    else if (key === "-" || key === "_") this.zoom(1 / STEP);
    else if (key === "0") this.zoomToFit();
    else if (key === "1") this.zoomTo(1);
    else if (key === "8") this.zoomTo(LARGEST);
    else if (key.toLowerCase() === "f") this.toggleFullScreen();
    else return false;
    return true;
  }

  /** While the key is down, what was before is shown. */
  holdBefore(down) {
    if (this.panes.length === 2 && !["side", "blink"].includes(this.mode)) this.#uncover(down);
  }
}
