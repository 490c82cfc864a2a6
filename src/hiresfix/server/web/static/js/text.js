// Texts of scripts in the page's language. The page carries the translations in <script id="messages">: forms by the
// English text. The rules of placeholders and particles are those of hiresfix/server/web/wording.py.

const carried = document.getElementById("messages");
const translations = carried ? JSON.parse(carried.textContent) : {};

export const language = document.documentElement.lang || "en";

/** The message in the page's language, its {placeholders} filled in. The message is one literal, for the extraction. */
export function t(message, values = {}) {
  const forms = translations[message];
  return fill(forms ? forms[0] : message, values);
}

/** The form that suits n, which fills {n}. */
export function tn(one, many, n, values = {}) {
  const forms = translations[one] ?? [one, many];
  return fill(n === 1 ? forms[0] : forms[forms.length - 1], { n: number(n), ...values });
}

const numbers = new Map();

/** A number in the page's language, with `digits` decimal places at most. */
export function number(value, digits = 2) {
  if (!numbers.has(digits)) numbers.set(digits, new Intl.NumberFormat(language, { maximumFractionDigits: digits }));
  return numbers.get(digits).format(value);
}

export function fill(message, values) {
  return message.replace(/\{(\w+)(?::([^{}]*))?\}/g, (whole, name, forms) => {
    if (!(name in values)) return whole;
    const value = String(values[name]);
    return forms ? value + particle(value, ...forms.split("/")) : value;
  });
}

/** Which of two Korean particles follows a word; 로 follows ㄹ as it does a vowel. */
function particle(word, afterConsonant, afterVowel) {
  const [consonant, rieul] = final(word.replace(/[^\p{L}\p{N}_%]+$/u, ""));
  if (rieul && afterVowel.startsWith("로")) return afterVowel;
  return consonant ? afterConsonant : afterVowel;
}

function final(word) {
  const last = word.slice(-1);
  const syllable = last ? last.charCodeAt(0) - 0xac00 : -1;
  if (syllable >= 0 && syllable < 11172) return [syllable % 28 > 0, syllable % 28 === 8];
  if (/\d/.test(last)) return ["013678".includes(last), "178".includes(last)];
  const tail = word.split(/[^\p{L}]+/u).pop();
  if (tail && tail !== tail.toLowerCase() && tail === tail.toUpperCase() && tail !== "JPEG") {
    return ["LMNR".includes(last), "LR".includes(last)];
  }
  const sound = (tail ?? "").toLowerCase().replace(/(?<=[lmn])e$/, "").slice(-1);
  return [Boolean(sound) && "bcgklmnp".includes(sound), sound === "l"];
}
