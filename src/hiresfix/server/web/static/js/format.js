// Dates, durations and amounts in the page's language.

import { h } from "./dom.js";
import { formatNumber, language, t, tn } from "./i18n.js";

const dateTime = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
const relativeTime = new Intl.RelativeTimeFormat(language, { numeric: "auto" });

/** Return a `<time>` element, or "never". */
export function timeElement(/** @type {string | null} */ timestamp) {
  if (!timestamp) return h("span.muted", t("never"));
  return h("time", { dateTime: timestamp }, dateTime.format(new Date(timestamp)));
}

/** Return "in 3 days" or "2 hours ago". */
export function formatRelativeTime(/** @type {string} */ timestamp) {
  const minutes = (Date.parse(timestamp) - Date.now()) / 60_000;
  if (Math.abs(minutes) >= 1440) return relativeTime.format(Math.trunc(minutes / 1440), "day");
  if (Math.abs(minutes) >= 60) return relativeTime.format(Math.trunc(minutes / 60), "hour");
  return relativeTime.format(Math.trunc(minutes), "minute");
}

export const formatCredits = (/** @type {number} */ n) => tn("{n} credit", "{n} credits", n);

/** Return "1,920 × 1,080". */
export const formatSize = (/** @type {number} */ width, /** @type {number} */ height) =>
  `${formatNumber(width, 0)} × ${formatNumber(height, 0)}`;

export function formatDuration(/** @type {number} */ seconds) {
  if (seconds < 90) return t("{n} s", { n: formatNumber(Math.max(1, seconds), 0) });
  return t("{n} min", { n: formatNumber(seconds / 60, 0) });
}
