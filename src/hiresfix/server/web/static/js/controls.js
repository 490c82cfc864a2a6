// The settings panel: presets, scales, sliders and expert settings, all built from GET /v2/models.

import { $, h, PAGE_DATA, setChildren } from "./dom.js";
import { formatNumber, t } from "./i18n.js";

const SLIDERS = ["creativity", "resemblance", "dynamic"];
const KEPT_ACROSS_PRESETS = ["scale_factor", "output_format", "seed"];

/** Return the name of a parameter for people, or its API name if it has none. */
export const paramLabel = (/** @type {string} */ name) => PAGE_DATA.paramNames[name] ?? name.replaceAll("_", " ");

/** Format the value of a parameter for people. */
export function formatValue(/** @type {string} */ name, /** @type {ParamValue} */ value) {
  if (typeof value !== "number") return PAGE_DATA.choiceNames[value] ?? value;
  if (name === "scale_factor") return `${value}×`;
  return name === "seed" ? String(value) : formatNumber(value);
}

/** Select the entries of an object. */
const filterParams = (/** @type {Params} */ params, /** @type {(name: string, value: ParamValue) => boolean} */ keep) =>
  Object.fromEntries(Object.entries(params).filter(([name, value]) => keep(name, value)));

export class Controls {
  /**
   * @param {Model[]} models
   * @param {(reason: "model" | "scale" | "value") => void} onChange
   */
  constructor(models, onChange) {
    this.models = models;
    this.onChange = onChange;
    this.model = models[0];
    /** @type {Preset | null} */
    this.preset = null;
    /** @type {Params} */
    this.values = {};
    /** @type {number | null} the first seed of seed variants */
    this.seedBase = null;
    this.#renderPresets();
  }

  /** Restore what `state` returned, as far as the model and the preset still exist. */
  restore(/** @type {ControlsState} */ state = {}) {
    const model = this.models.find(({ id }) => id === state.model) ?? this.models[0];
    const preset = model.presets.find(({ id }) => id === state.preset) ?? (state.model ? null : model.presets[0]);
    this.#apply(model, preset, state.values);
  }

  /** @returns {ControlsState} */
  state() {
    return { model: this.model.id, preset: this.preset?.id ?? null, values: this.values };
  }

  /** Return the parameters to send: those that differ from the defaults. */
  params() {
    return filterParams(this.values, (name, value) => value !== "" && value !== this.#schema(name)?.default);
  }

  #schema(/** @type {string} */ name) {
    return this.model.params.properties[name];
  }

  /** Return the value of a parameter, or its default. */
  valueOf(/** @type {string} */ name) {
    return this.values[name] ?? this.#schema(name)?.default;
  }

  get scale() {
    return Number(this.valueOf("scale_factor"));
  }

  /** Return the parameters in which variants can differ. */
  variantParams() {
    const { properties } = this.model.params;
    return Object.keys(properties).filter(
      (name) => SLIDERS.includes(name) || name === "seed" || (name === "sharpen" && properties[name].maximum),
    );
  }

  /** Return `count` sets of parameters that differ in one. */
  variants(/** @type {number} */ count, /** @type {string} */ name) {
    const params = this.params();
    if (count < 2 || !this.#schema(name)) return [params];
    return this.variantValues(count, name).map((value) => ({ ...params, [name]: value }));
  }

  /** Return `count` values of a parameter, from half its present value to twice it. */
  variantValues(/** @type {number} */ count, /** @type {string} */ name) {
    const { minimum = 0, maximum = 1 } = this.#schema(name);
    if (name === "seed") {
      const first = this.#firstSeed();
      return Array.from({ length: count }, (_, index) => first + index);
    }
    const middle = Math.max(Number(this.valueOf(name)), minimum + (maximum - minimum) / 10);
    const low = Math.max(minimum, middle / 2);
    const high = Math.min(maximum, middle * 2);
    const round = (/** @type {number} */ value) => Math.round(value * 100) / 100;
    return Array.from({ length: count }, (_, index) => round(low + ((high - low) * index) / (count - 1)));
  }

  #firstSeed() {
    if (this.values.seed === undefined) this.seedBase ??= 1 + Math.floor(Math.random() * 1e6);
    else this.seedBase = Number(this.values.seed);
    return this.seedBase;
  }

  #renderPresets() {
    const entries = this.models.flatMap((model) => model.presets.map((preset) => ({ model, preset })));
    setChildren(
      $("presets"),
      entries.map(({ model, preset }) => {
        const id = `preset-${preset.id}`;
        const onchange = () => this.#choose(model, preset);
        const radio = h("input", { type: "radio", name: "preset", id, value: preset.id, onchange });
        return [radio, h("label", { htmlFor: id }, t(preset.label))];
      }),
    );
  }

  #choose(/** @type {Model} */ model, /** @type {Preset} */ preset) {
    const kept = filterParams(
      this.values,
      (name) => KEPT_ACROSS_PRESETS.includes(name) && name in model.params.properties,
    );
    this.#apply(model, preset, { ...kept, ...preset.params });
    this.onChange("model");
  }

  /** @type {(model: Model, preset: Preset | null, values?: Params) => void} */
  #apply(model, preset, values = preset?.params ?? {}) {
    this.model = model;
    this.preset = preset;
    this.values = filterParams(values, (name) => name in model.params.properties && name !== "image");
    this.#render();
  }

  /**
   * Set a parameter; `undefined` and "" reset it to its default.
   * @param {string} name
   * @param {ParamValue | undefined} value
   * @param {"scale" | "value"} [reason]
   */
  set(name, value, reason = "value") {
    if (value === "" || value === undefined || Number.isNaN(value)) delete this.values[name];
    else this.values[name] = value;
    this.onChange(reason);
    this.#syncInputs(name);
    this.#showPreset();
  }

  /** Update all inputs of a parameter: some have one above and one among the expert settings. */
  #syncInputs(/** @type {string} */ name) {
    const value = this.valueOf(name);
    const field = /** @type {HTMLInputElement | null} */ ($(`param-${name}`));
    const slider = /** @type {HTMLInputElement | null} */ ($(`main-${name}`));
    const scale = /** @type {HTMLInputElement | null} */ (name === "scale_factor" ? $(`scale-${value}`) : null);
    if (field && field !== document.activeElement) {
      const shown = this.values[name] ?? (field.placeholder === undefined ? value : "");
      field.value = String(shown);
    }
    if (slider) {
      slider.value = String(value);
      $(`main-${name}-value`).textContent = formatNumber(Number(value));
    }
    if (scale) scale.checked = true;
  }

  #render() {
    const { properties } = this.model.params;
    this.#renderScales(properties.scale_factor);
    const sliders = SLIDERS.filter((name) => properties[name]);
    const hint = t("This model adds no new detail, so there is nothing to adjust.");
    setChildren($("sliders"), sliders.length ? sliders.map((name) => this.#slider(name)) : h("p.notice", hint));
    const names = Object.keys(properties).filter((name) => name !== "image");
    const fields = names.map((name) => this.#field(name));
    setChildren($("expert-fields"), this.#modelField(), fields, this.#resetButton());
    this.#showPreset();
  }

  #showPreset() {
    const preset = this.preset;
    const radio = preset && /** @type {HTMLInputElement | null} */ ($(`preset-${preset.id}`));
    if (radio) radio.checked = true;
    else for (const other of $("presets").querySelectorAll("input")) other.checked = false;
    const isChanged = preset && this.#isPresetChanged(preset);
    const help = [preset && t(preset.description), isChanged && t("Some settings were changed.")];
    $("preset-help").textContent = help.filter(Boolean).join(" ");
  }

  #isPresetChanged(/** @type {Preset} */ preset) {
    return Object.entries(this.values).some(
      ([name, value]) =>
        !KEPT_ACROSS_PRESETS.includes(name) && (preset.params[name] ?? this.#schema(name).default) !== value,
    );
  }

  #renderScales(/** @type {ParamSchema | undefined} */ schema) {
    const radios = (schema?.enum ?? []).map((scale) => {
      const id = `scale-${scale}`;
      const checked = scale === this.valueOf("scale_factor");
      const onchange = () => this.set("scale_factor", scale, "scale");
      const radio = h("input", { type: "radio", name: "scale", id, value: String(scale), checked, onchange });
      return [radio, h("label", { htmlFor: id }, `${scale}×`)];
    });
    setChildren($("scales"), radios);
  }

  #slider(/** @type {string} */ name) {
    const schema = this.#schema(name);
    const id = `main-${name}`;
    const value = Number(this.valueOf(name));
    const [low, high] = PAGE_DATA.sliderEnds[name];
    const input = h("input", {
      type: "range",
      id,
      min: schema.minimum,
      max: schema.maximum,
      step: sliderStep(schema),
      value,
      "aria-describedby": `${id}-help`,
      oninput: () => {
        this.set(name, input.valueAsNumber);
      },
    });
    const label = h("label", { htmlFor: id }, paramLabel(name));
    const output = h("output", { id: `${id}-value`, htmlFor: id }, formatNumber(value));
    return h(
      "div.slider",
      h("div.slider-head", label, output),
      input,
      h("div.slider-ends", { "aria-hidden": "true" }, h("span", low), h("span", high)),
      h("p.visually-hidden", { id: `${id}-help` }, t(schema.description)),
    );
  }

  #modelField() {
    const options = this.models.map((model) =>
      h("option", { value: model.id, selected: model === this.model }, model.label),
    );
    const onchange = () => {
      const model = this.models[select.selectedIndex];
      this.#choose(model, model.presets[0]);
      $("model").focus();
    };
    const select = h("select", { id: "model", onchange }, options);
    const help = h("p.help", t(this.model.description));
    return h("div.field", h("label", { htmlFor: "model" }, t("Model")), select, help);
  }

  #field(/** @type {string} */ name) {
    const schema = this.#schema(name);
    const id = `param-${name}`;
    const help = [t(schema.description), describeBounds(schema)].filter(Boolean).join(" ");
    return h(
      "div.field",
      h("label", { htmlFor: id }, paramLabel(name), " ", h("code.param", name)),
      this.#input(id, name, schema),
      h("p.help", { id: `${id}-help` }, help),
      h("p.help.error", { id: `${id}-error`, role: "alert", hidden: true }),
    );
  }

  /** @type {(id: string, name: string, schema: ParamSchema) => HTMLElement} */
  #input(id, name, schema) {
    const common = { id, "aria-describedby": `${id}-help ${id}-error` };
    const value = this.values[name];
    const { enum: choices } = schema;
    if (choices) {
      const options = choices.map((choice) =>
        h("option", { value: String(choice), selected: choice === this.valueOf(name) }, formatValue(name, choice)),
      );
      const onchange = () => {
        this.set(name, choices[select.selectedIndex]);
      };
      const select = h("select", { ...common, onchange }, options);
      return select;
    }
    const placeholder = schema.default ?? "";
    if (schema.type === "string") {
      const oninput = () => {
        this.set(name, area.value);
      };
      const maxLength = schema.maxLength ?? -1;
      const area = h("textarea", { ...common, rows: 2, maxLength, placeholder, value: value ?? "", oninput });
      return area;
    }
    const isInteger = schema.type === "integer";
    const input = h("input", {
      ...common,
      type: "number",
      inputMode: isInteger ? "numeric" : "decimal",
      min: schema.minimum,
      max: schema.maximum,
      step: isInteger ? 1 : "any",
      placeholder,
      value,
      oninput: () => {
        this.#setNumber(input, name, schema);
      },
    });
    return input;
  }

  /** @type {(input: HTMLInputElement, name: string, schema: ParamSchema) => void} */
  #setNumber(input, name, schema) {
    const error = $(`${input.id}-error`);
    const isValid = input.checkValidity();
    input.setAttribute("aria-invalid", String(!isValid));
    error.hidden = isValid;
    error.textContent = isValid ? "" : describeBounds(schema);
    if (isValid) this.set(name, input.value === "" ? undefined : input.valueAsNumber);
  }

  #resetButton() {
    const onclick = () => {
      this.#apply(this.model, this.preset ?? this.model.presets[0]);
      this.onChange("model");
    };
    return h("button.button.small", { onclick }, t("Reset to preset"));
  }
}

/** Describe the bounds and the default of a number. */
function describeBounds(/** @type {ParamSchema} */ schema) {
  const { minimum, maximum, default: fallback } = schema;
  const sentences = [];
  if (minimum !== undefined && maximum !== undefined && maximum < 1e9) {
    sentences.push(t("From {low} to {high}.", { low: formatNumber(minimum), high: formatNumber(maximum) }));
  }
  if (fallback !== undefined && schema.type !== "string") {
    sentences.push(t("Default: {value}.", { value: formatNumber(Number(fallback)) }));
  }
  return sentences.join(" ");
}

function sliderStep(/** @type {ParamSchema} */ { type, minimum = 0, maximum = 1 }) {
  if (type === "integer") return 1;
  const range = maximum - minimum;
  if (range <= 3) return 0.05;
  return range <= 10 ? 0.1 : 0.5;
}
