// The present form as code that runs: the page brings the programs, what the studio itself would send is put in.

import { FACTS } from "./dom.js";

export const LANGUAGES = Object.keys(FACTS.programs);

/** JSON, which is JavaScript, and Python too as long as it holds texts and numbers only; quoted for a shell. */
export function program(language, body) {
  const json = JSON.stringify(body, null, 2);
  const request = language === "curl" ? `'${json.replaceAll("'", `'\\''`)}'` : json;
  return FACTS.programs[language].replace(FACTS.request, () => request);
}
