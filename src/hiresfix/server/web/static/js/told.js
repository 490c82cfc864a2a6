// What the server says, in the page's language where the page brings the sentence (texts.py); English else.

import { FACTS, h } from "./dom.js";
import { language, t } from "./text.js";

/** The sentence translated, or marked as English for those who read it out. */
export function told(sentence) {
  if (language === "en" || !sentence) return sentence;
  for (const message of FACTS.sayings) {
    const parts = message.split(/\{(\w+)\}/); // text, name, text, ...
    const pattern = parts.map((part, index) => (index % 2 ? "(.+?)" : part.replace(/[^\w\s]/g, "\\$&"))).join("");
    const found = new RegExp(`^${pattern}$`).exec(sentence);
    if (found) return t(message, Object.fromEntries(found.slice(1).map((value, index) => [parts[index * 2 + 1], value])));
  }
  return h("span", { lang: "en" }, sentence);
}
