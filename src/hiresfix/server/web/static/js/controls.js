// The settings: presets, sliders and the expert drawer, all made from what GET /v2/models says, so that they cannot
// disagree with what the server accepts.

import { $, FACTS, fillWith, h } from "./dom.js";
import { number, t } from "./text.js";

const MAIN = ["creativity", "resemblance", "dynamic"];

/** What people call a parameter; its own name where nobody gave it another one. */
export const nameOf = (param) => FACTS.names[param] ?? param.replaceAll("_", " ");

/** A parameter's value as people read it. */
export const shown = (param, value) =>
  typeof value === "number" ? (param === "scale_factor" ? `${value}×` : param === "seed" ? String(value) : number(value)) : FACTS.choices[value] ?? String(value);

export class Controls {
  /** `changed(reason)` is called after every change: "model", "scale" or "value". */
  constructor(models, { changed }) {
    this.models = models;
    this.changed = changed;
    this.model = models[0];
    this.values = {};
    this.preset = null;
    this.#buildPresets();
  }

  /** Restore what `state` gave, as far as it still exists. */
  restore(state = {}) {
    const model = this.models.find((found) => found.id === state.model) ?? this.models[0];
    const preset = model.presets.find((found) => found.id === state.preset) ?? (state.model ? null : model.presets[0]);
    this.#take(model, preset, state.values);
  }

  state() {
    return { model: this.model.id, preset: this.preset?.id ?? null, values: this.values };
  }

  /** Parameters to send: what differs from the defaults. */
  params() {
    const facts = this.model.params.properties;
    return Object.fromEntries(Object.entries(this.values).filter(([name, value]) => value !== "" && value !== undefined && value !== facts[name]?.default));
  }

  valueOf(name) {
    return this.values[name] ?? this.model.params.properties[name]?.default;
  }

  /** Numbers that variants can differ in. */
  variable() {
    return Object.entries(this.model.params.properties)
      .filter(([name, facts]) => MAIN.includes(name) || name === "seed" || (name === "sharpen" && facts.maximum))
      .map(([name]) => name);
  }

  /** `count` sets of parameters that differ in one. */
  variants(count, name) {
    const params = this.params();
    if (count < 2 || !this.model.params.properties[name]) return [params];
    return this.spread(count, name).map((value) => ({ ...params, [name]: value }));
  }

  spread(count, name) {
    const { minimum = 0, maximum = 1 } = this.model.params.properties[name];
    if (name === "seed") {
      const first = this.values.seed ?? 1 + Math.floor(Math.random() * 1e6);
      this.firstSeed = this.values.seed === undefined ? (this.firstSeed ??= first) : first;
      return Array.from({ length: count }, (_, index) => this.firstSeed + index);
    }
    // From half of the present value to twice it: what people can tell apart without leaving what they chose.
    const middle = Math.max(this.valueOf(name), minimum + (maximum - minimum) / 10);
    const [low, high] = [Math.max(minimum, middle / 2), Math.min(maximum, middle * 2)];
    return Array.from({ length: count }, (_, index) => Math.round((low + ((high - low) * index) / (count - 1)) * 100) / 100);
  }

  #buildPresets() {
    const entries = this.models.flatMap((model) => model.presets.map((preset) => ({ model, preset })));
    fillWith(
      $("presets"),
      entries.map(({ model, preset }) => {
        const id = `preset-${preset.id}`;
        const radio = h("input", { type: "radio", name: "preset", id, value: preset.id, onchange: () => this.#choose(model, preset) });
        return [radio, h("label", { htmlFor: id }, t(preset.label))];
      }),
    );
  }

  #choose(model, preset) {
    const kept = Object.fromEntries(["scale_factor", "output_format", "seed"].filter((name) => name in this.values && name in model.params.properties).map((name) => [name, this.values[name]]));
    this.#take(model, preset, { ...kept, ...preset.params });
    this.changed("model");
  }

  #take(model, preset, values = preset?.params ?? {}) {
    this.model = model;
    this.preset = preset;
    this.values = Object.fromEntries(Object.entries(values).filter(([name]) => name in model.params.properties && name !== "image"));
    this.#render();
  }

  set(name, value, reason = "value") {
    if (value === "" || value === undefined || Number.isNaN(value)) delete this.values[name];
    else this.values[name] = value;
    this.changed(reason);
    this.#agree(name);
    this.#showPreset();
  }

  /** What is there twice, above and among the expert settings, says the same. */
  #agree(name) {
    const value = this.valueOf(name);
    const [field, range, scale] = [$(`param-${name}`), $(`main-${name}`), name === "scale_factor" && $(`scale-${value}`)];
    if (field && field !== document.activeElement) field.value = this.values[name] ?? (field.placeholder === undefined ? value : "");
    if (range) [range.value, range.previousElementSibling.lastChild.textContent] = [value, number(value)];
    if (scale) scale.checked = true;
  }

  #render() {
    const facts = this.model.params.properties;
    this.#renderScales(facts.scale_factor);
    const sliders = MAIN.filter((name) => facts[name]);
    fillWith(
      $("sliders"),
      sliders.length ? sliders.map((name) => this.#slider(name, facts[name])) : h("p.notice", t("This one invents nothing, so there is nothing to balance.")),
    );
    const expert = Object.keys(facts).filter((name) => name !== "image");
    fillWith($("expert-fields"), this.#modelField(), expert.map((name) => this.#field(name, facts[name])), this.#reset());
    this.#showPreset();
  }

  #showPreset() {
    const preset = this.preset;
    const radio = preset && $(`preset-${preset.id}`);
    if (radio) radio.checked = true;
    else for (const other of $("presets").querySelectorAll("input")) other.checked = false;
    const own = Object.entries(this.values).some(([name, value]) => !["scale_factor", "output_format", "seed"].includes(name) && preset && (preset.params[name] ?? this.model.params.properties[name].default) !== value);
    $("preset-help").textContent = preset ? [t(preset.description), own && t("You changed some of it.")].filter(Boolean).join(" ") : "";
  }

  #renderScales(facts) {
    const choices = facts?.enum ?? [];
    fillWith(
      $("scales"),
      choices.map((scale) => {
        const id = `scale-${scale}`;
        const radio = h("input", { type: "radio", name: "scale", id, value: String(scale), checked: scale === this.valueOf("scale_factor"), onchange: () => this.set("scale_factor", scale, "scale") });
        return [radio, h("label", { htmlFor: id }, `${scale}×`)];
      }),
    );
  }

  #slider(name, facts) {
    const id = `main-${name}`;
    const value = this.valueOf(name);
    const [low, high] = FACTS.ends[name];
    return h("div.slider",
      h("div.slider-head", h("label", { htmlFor: id }, nameOf(name)), h("output", { htmlFor: id }, number(value))),
      h("input", { type: "range", id, min: facts.minimum, max: facts.maximum, step: stepOf(facts), value, "aria-describedby": `${id}-help`, oninput: ({ target }) => this.set(name, target.valueAsNumber) }),
      h("div.slider-ends", { "aria-hidden": "true" }, h("span", low), h("span", high)),
      h("p.visually-hidden", { id: `${id}-help` }, t(facts.description)),
    );
  }

  #modelField() {
    const choose = ({ target }) => {
      const model = this.models[target.selectedIndex];
      this.#choose(model, model.presets[0]);
      $("model").focus();
    };
    const options = this.models.map((model) => h("option", { value: model.id, selected: model === this.model }, model.label));
    return h("div.field", h("label", { htmlFor: "model" }, t("Model")), h("select", { id: "model", onchange: choose }, options), h("p.help", t(this.model.description)));
  }

  #field(name, facts) {
    const id = `param-${name}`;
    const help = [t(facts.description), this.#bounds(facts)].filter(Boolean).join(" ");
    return h("div.field",
      h("label", { htmlFor: id }, nameOf(name), " ", h("code.param", name)),
      this.#input(id, name, facts),
      h("p.help", { id: `${id}-help` }, help),
      h("p.help.wrong", { id: `${id}-wrong`, role: "alert", hidden: true }),
    );
  }

  #input(id, name, facts) {
    const described = { id, "aria-describedby": `${id}-help ${id}-wrong` };
    const value = this.values[name];
    if (facts.enum) {
      return h("select", { ...described, onchange: ({ target }) => this.set(name, facts.enum[target.selectedIndex]) },
        facts.enum.map((choice) => h("option", { value: String(choice), selected: choice === this.valueOf(name) }, shown(name, choice))));
    }
    if (facts.type === "string") {
      return h("textarea", { ...described, rows: 2, maxLength: facts.maxLength ?? -1, placeholder: facts.default ?? "", value: value ?? "", oninput: ({ target }) => this.set(name, target.value) });
    }
    const whole = facts.type === "integer";
    return h("input", { ...described, type: "number", inputMode: whole ? "numeric" : "decimal", min: facts.minimum, max: facts.maximum, step: whole ? 1 : "any", placeholder: facts.default ?? "", value, oninput: ({ target }) => this.#number(target, name, facts) });
  }

  #number(field, name, facts) {
    const wrong = $(`${field.id}-wrong`);
    const valid = field.checkValidity();
    field.setAttribute("aria-invalid", !valid);
    wrong.hidden = valid;
    wrong.textContent = valid ? "" : this.#bounds(facts);
    if (valid) this.set(name, field.value === "" ? undefined : field.valueAsNumber);
  }

  #bounds(facts) {
    const parts = [];
    if (facts.minimum !== undefined && facts.maximum !== undefined && facts.maximum < 1e9) {
      parts.push(t("From {low} to {high}.", { low: number(facts.minimum), high: number(facts.maximum) }));
    }
    if (facts.default !== undefined && facts.type !== "string") parts.push(t("Default: {value}.", { value: number(facts.default) }));
    return parts.join(" ");
  }

  #reset() {
    return h("button.button.small", { onclick: () => {
      this.#take(this.model, this.preset ?? this.model.presets[0]);
      this.changed("model");
    } }, t("Back to the preset"));
  }
}

function stepOf(facts) {
  const range = facts.maximum - facts.minimum;
  return facts.type === "integer" ? 1 : range <= 3 ? 0.05 : range <= 10 ? 0.1 : 0.5;
}
