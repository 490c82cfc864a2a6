// Translations in the browser. The page brings them in <script id="messages">: English text -> plural forms.
// Placeholders and Korean particles follow the same rules as hiresfix/server/web/message_format.py.

const messages = document.getElementById("messages");
/** @type {Record<string, string[]>} */
const translations = messages ? JSON.parse(messages.textContent) : {};

export const language = document.documentElement.lang || "en";

/** @typedef {Record<string, string | number>} Values */

/**
 * Translate a message and fill in its {placeholders}. Pass a literal: translations are extracted from the source.
 * @type {(message: string, values?: Values) => string}
 */
export function t(message, values = {}) {
  const forms = translations[message];
  return fill(forms ? forms[0] : message, values);
}

/**
 * Translate a message with a count, and fill in {n}.
 * @type {(singular: string, plural: string, n: number, values?: Values) => string}
 */
export function tn(singular, plural, n, values = {}) {
  const forms = translations[singular] ?? [singular, plural];
  return fill(n === 1 ? forms[0] : forms[forms.length - 1], { n: formatNumber(n), ...values });
}

/** @type {Map<number, Intl.NumberFormat>} */
const numberFormats = new Map();

/** Format a number in the page's language, with at most `digits` decimal places. */
export function formatNumber(/** @type {number} */ value, digits = 2) {
  let format = numberFormats.get(digits);
  if (!format) {
    format = new Intl.NumberFormat(language, { maximumFractionDigits: digits });
    numberFormats.set(digits, format);
  }
  return format.format(value);
}

/** @type {(message: string, values: Values) => string} */
export function fill(message, values) {
  return message.replace(/\{(\w+)(?::([^{}]*))?\}/g, (placeholder, name, particles) => {
    if (!(name in values)) return placeholder;
    const value = String(values[name]);
    return particles ? value + particle(value, particles) : value;
  });
}

/** Choose the Korean particle that follows a word: "을/를". 로 follows a final ㄹ as it follows a vowel. */
function particle(/** @type {string} */ word, /** @type {string} */ particles) {
  const [afterConsonant, afterVowel] = particles.split("/");
  const [consonant, rieul] = finalSound(word.replace(/[^\p{L}\p{N}_%]+$/u, ""));
  if (rieul && afterVowel.startsWith("로")) return afterVowel;
  return consonant ? afterConsonant : afterVowel;
}

/** Return whether a word ends in a consonant, and whether that is ㄹ. */
function finalSound(/** @type {string} */ word) {
  const last = word.slice(-1);
  const syllable = last ? last.charCodeAt(0) - 0xac00 : -1;
  if (syllable >= 0 && syllable < 11172) return [syllable % 28 > 0, syllable % 28 === 8];
  if (/\d/.test(last)) return ["013678".includes(last), "178".includes(last)];
  const tail = word.split(/[^\p{L}]+/u).pop() ?? "";
  if (tail !== tail.toLowerCase() && tail === tail.toUpperCase() && tail !== "JPEG") {
    return ["LMNR".includes(last), "LR".includes(last)];
  }
  const sound = tail
    .toLowerCase()
    .replace(/(?<=[lmn])e$/, "")
    .slice(-1);
  return [Boolean(sound) && "bcgklmnp".includes(sound), sound === "l"];
}
