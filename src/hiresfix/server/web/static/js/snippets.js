// The present form as code that runs: what is sent is what the studio itself would send.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** JSON, which in what is sent is Python too: texts and numbers only. */
function indented(value, spaces) {
  return JSON.stringify(value, null, 2).replaceAll("\n", "\n" + " ".repeat(spaces));
}

export const SNIPPETS = {
  curl: (origin, body) => `curl -X POST ${origin}/v2/images/upscale \\
  -H "X-API-Key: $HIRESFIX_API_KEY" \\
  -H "Content-Type: application/json" \\
  -H "Prefer: wait=20" \\
  -d ${quoted(JSON.stringify(body, null, 2))}`,

  python: (origin, body) => `import os, time
import requests

SERVER = "${origin}"
session = requests.Session()
session.headers["X-API-Key"] = os.environ["HIRESFIX_API_KEY"]

answer = session.post(f"{SERVER}/v2/images/upscale", json=${indented(body, 0)})
answer.raise_for_status()
job = answer.json()["jobId"]
while (state := session.get(f"{SERVER}/v2/jobs/{job}").json())["status"] in ("QUEUED", "PROCESSING"):
    time.sleep(2)
print(state["result"]["images"][0] if state["result"] else state["error"])`,

  javascript: (origin, body) => `const server = "${origin}";
const headers = { "X-API-Key": process.env.HIRESFIX_API_KEY, "Content-Type": "application/json" };

const answer = await fetch(\`\${server}/v2/images/upscale\`, {
  method: "POST",
  headers,
  body: JSON.stringify(${indented(body, 2)}),
});
if (!answer.ok) throw new Error(await answer.text());
const { jobId } = await answer.json();
let job;
do {
  await new Promise((resolve) => setTimeout(resolve, 2000));
  job = await (await fetch(\`\${server}/v2/jobs/\${jobId}\`, { headers })).json();
} while (["QUEUED", "PROCESSING"].includes(job.status));
console.log(job.result?.images[0] ?? job.error);`,
};
