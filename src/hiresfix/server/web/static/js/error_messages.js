// Messages of the server in the page's language. Their templates are in hiresfix/messages.py.

import { h, PAGE_DATA } from "./dom.js";
import { language, t } from "./i18n.js";

/**
 * A message as the API sends it: an English sentence, and what it was made from.
 * @typedef {{ message: string, reason?: string | null, params?: Record<string, string | number> | null }} ServerMessage
 */

/**
 * Return the message in the page's language. One without a known reason stays English, marked for screen readers.
 * @type {(serverMessage: ServerMessage) => Child}
 */
export function renderMessage({ message, reason, params }) {
  const template = reason && PAGE_DATA.messages[reason];
  return template ? t(template, params ?? {}) : translateSentence(message);
}

/**
 * Return why a job failed, in the page's language. Jobs of earlier releases have only the English sentence.
 * @type {(job: Job) => Child}
 */
export function renderJobError({ error, errorReason, errorParams }) {
  return renderMessage({ message: error ?? "", reason: errorReason, params: errorParams });
}

/**
 * Return the translation of a sentence without parameters that is stored as text: a note, a ledger entry.
 * @type {(sentence: string | null | undefined) => Child}
 */
export function translateSentence(sentence) {
  if (language === "en" || !sentence) return sentence;
  const translation = t(sentence);
  return translation === sentence ? h("span", { lang: "en" }, sentence) : translation;
}
