"""Programs for callers to copy, made for a model and for the address of this server. Tests run every one of them.

They read the API key from the environment, so that nobody pastes one into a file that is shared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiresfix.models.catalog import Model

PICTURE = "https://example.com/input.jpg"
JOB = "JOB_ID"
KEY_VARIABLE = "HIRESFIX_API_KEY"
REQUEST = "REQUEST"
_SHOWN = ("image", "scale_factor", "creativity", "content")
"""Parameters of an example, where a model has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippets:
    """The same in three languages."""

    curl: str
    python: str
    javascript: str

    def items(self) -> tuple[tuple[str, str, str], ...]:
        """Identifier, name and program."""
        return ("curl", "curl", self.curl), ("python", "Python", self.python), ("js", "JavaScript", self.javascript)


def body(model: Model) -> dict[str, Any]:
    """A small request for the model; values are its defaults."""
    params = {name: next(p for p in model.params if p.name == name) for name in _names(model)}
    values = {name: PICTURE if param.kind == "uri" else param.default for name, param in params.items()}
    return {"model": model.id, model.params_key: values}


def _names(model: Model) -> list[str]:
    own = [param.name for param in model.params]
    return [name for name in _SHOWN if name in own]


def submission(model: Model, origin: str) -> Snippets:
    """One request that starts a job."""
    sent = body(model)
    return Snippets(
        curl=f"""curl -X POST {origin}/v2/images/upscale \\
  -H "X-API-Key: ${KEY_VARIABLE}" \\
  -H "Content-Type: application/json" \\
  -d '{_indented(json.dumps(sent, indent=2), 6)}'""",
        python=f"""import os
import requests

response = requests.post(
    "{origin}/v2/images/upscale",
    headers={{"X-API-Key": os.environ["{KEY_VARIABLE}"]}},
    json={_indented(_python(sent), 4)},
)
response.raise_for_status()
print(response.json())  # {{'jobId': '...', 'status': 'QUEUED'}}""",
        javascript=f"""const response = await fetch("{origin}/v2/images/upscale", {{
  method: "POST",
  headers: {{
    "X-API-Key": process.env.{KEY_VARIABLE},
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({_indented(json.dumps(sent, indent=2), 2)}),
}});
if (!response.ok) throw new Error(await response.text());
const {{ jobId }} = await response.json();
console.log(jobId);""",
    )


def polling(origin: str) -> Snippets:
    """Waiting for a job's end."""
    return Snippets(
        curl=f"""curl {origin}/v2/jobs/{JOB} \\
  -H "X-API-Key: ${KEY_VARIABLE}\"""",
        python=f"""import os
import time
import requests

while True:
    response = requests.get(
        "{origin}/v2/jobs/{JOB}",
        headers={{"X-API-Key": os.environ["{KEY_VARIABLE}"]}},
    )
    response.raise_for_status()
    job = response.json()
    if job["status"] in ("COMPLETED", "FAILED", "CANCELLED"):
        break
    time.sleep(2)
print(job["result"] or job["error"])""",
        javascript=f"""let job;
do {{
  await new Promise((resolve) => setTimeout(resolve, 2000));
  const response = await fetch("{origin}/v2/jobs/{JOB}", {{
    headers: {{ "X-API-Key": process.env.{KEY_VARIABLE} }},
  }});
  if (!response.ok) throw new Error(await response.text());
  job = await response.json();
}} while (!["COMPLETED", "FAILED", "CANCELLED"].includes(job.status));
console.log(job.result ?? job.error);""",
    )


def uploading(origin: str) -> Snippets:
    """Handing in a file; the answer's `url` goes where a picture's address goes."""
    return Snippets(
        curl=f"""curl -X POST {origin}/v2/uploads \\
  -H "X-API-Key: ${KEY_VARIABLE}" \\
  -F "file=@photo.jpg\"""",
        python=f"""import os
import requests

with open("photo.jpg", "rb") as file:
    response = requests.post(
        "{origin}/v2/uploads",
        headers={{"X-API-Key": os.environ["{KEY_VARIABLE}"]}},
        files={{"file": file}},
    )
response.raise_for_status()
print(response.json()["url"])""",
        javascript=f"""import {{ openAsBlob }} from "node:fs";

const form = new FormData();
form.append("file", await openAsBlob("photo.jpg"), "photo.jpg");
const response = await fetch("{origin}/v2/uploads", {{
  method: "POST",
  headers: {{ "X-API-Key": process.env.{KEY_VARIABLE} }},
  body: form,
}});
if (!response.ok) throw new Error(await response.text());
console.log((await response.json()).url);""",
    )


def of_form(origin: str) -> dict[str, str]:
    """Programs that make one picture, by language; the studio puts what its form says in place of `REQUEST`."""
    return {
        "curl": f"""curl -X POST {origin}/v2/images/upscale \\
  -H "X-API-Key: ${KEY_VARIABLE}" \\
  -H "Content-Type: application/json" \\
  -H "Prefer: wait=20" \\
  -d {REQUEST}""",
        "python": f"""import os
import time
import requests

server = "{origin}"
session = requests.Session()
session.headers["X-API-Key"] = os.environ["{KEY_VARIABLE}"]
request = {REQUEST}

response = session.post(f"{{server}}/v2/images/upscale", json=request)
response.raise_for_status()
address = f"{{server}}/v2/jobs/{{response.json()['jobId']}}"
while (job := session.get(address).json())["status"] in ("QUEUED", "PROCESSING"):
    time.sleep(2)
print(job["result"]["images"][0] if job["result"] else job["error"])""",
        "javascript": f"""const server = "{origin}";
const headers = {{ "X-API-Key": process.env.{KEY_VARIABLE}, "Content-Type": "application/json" }};
const request = {REQUEST};

const response = await fetch(`${{server}}/v2/images/upscale`, {{
  method: "POST",
  headers,
  body: JSON.stringify(request),
}});
if (!response.ok) throw new Error(await response.text());
const {{ jobId }} = await response.json();
let job;
do {{
  await new Promise((resolve) => setTimeout(resolve, 2000));
  job = await (await fetch(`${{server}}/v2/jobs/${{jobId}}`, {{ headers }})).json();
}} while (["QUEUED", "PROCESSING"].includes(job.status));
console.log(job.result?.images[0] ?? job.error);""",
    }


def accepted() -> str:
    """The answer to a submission."""
    return json.dumps({"jobId": "b2c3d4e5-f6a7-4901-9cde-f23456789012", "status": "QUEUED"}, indent=2)


def completed(model: Model, origin: str, cost: int) -> str:
    """A finished job, with the fields that matter most."""
    job = "b2c3d4e5-f6a7-4901-9cde-f23456789012"
    shown = {
        "id": job,
        "status": "COMPLETED",
        "model": model.id,
        "progress": 100,
        "result": {"images": [f"{origin}/files/images/{job}-1.png"]},
        "error": None,
        "creditCost": cost,
    }
    return json.dumps(shown, indent=2)


def _python(value: Mapping[str, Any]) -> str:
    """As JSON, which is Python too as long as nothing is true, false or null."""
    return json.dumps(value, indent=4)


def _indented(text: str, by: int) -> str:
    """Every line but the first moved to the right."""
    return text.replace("\n", "\n" + " " * by)
