"""Example programs for callers to copy, with the address of this server. Tests run every one of them.

They read the API key from the environment, so that nobody pastes it into a shared file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hiresfix.models.catalog import CatalogModel

IMAGE_URL = "https://example.com/input.jpg"
JOB_ID = "JOB_ID"
EXAMPLE_JOB = "b2c3d4e5-f6a7-4901-9cde-f23456789012"
KEY_VARIABLE = "HIRESFIX_API_KEY"
REQUEST_PLACEHOLDER = "REQUEST"
_EXAMPLE_PARAMS = ("image", "scale_factor", "creativity", "content")
"""Parameters of the example request, if the model has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippets:
    """The same program in three languages."""

    curl: str
    python: str
    javascript: str

    def items(self) -> tuple[tuple[str, str, str], ...]:
        """Return identifier, name of the language and program."""
        return ("curl", "curl", self.curl), ("python", "Python", self.python), ("js", "JavaScript", self.javascript)


def example_request(model: CatalogModel) -> dict[str, Any]:
    """Return a small request for the model, with default values."""
    params = {param.name: param for param in model.params}
    values = {
        name: IMAGE_URL if params[name].kind == "uri" else params[name].default
        for name in _EXAMPLE_PARAMS
        if name in params
    }
    return {"model": model.id, model.params_key: values}


def submission(model: CatalogModel, origin: str) -> Snippets:
    """Return programs that start a job."""
    request = example_request(model)
    return Snippets(
        curl=f"""curl -X POST {origin}/v2/images/upscale \\
  -H "X-API-Key: ${KEY_VARIABLE}" \\
  -H "Content-Type: application/json" \\
  -d '{_indented(json.dumps(request, indent=2), 6)}'""",
        python=f"""import os
import requests

response = requests.post(
    "{origin}/v2/images/upscale",
    headers={{"X-API-Key": os.environ["{KEY_VARIABLE}"]}},
    json={_indented(json.dumps(request, indent=4), 4)},
)
response.raise_for_status()
print(response.json())  # {{'jobId': '...', 'status': 'QUEUED'}}""",
        javascript=f"""const response = await fetch("{origin}/v2/images/upscale", {{
  method: "POST",
  headers: {{
    "X-API-Key": process.env.{KEY_VARIABLE},
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({_indented(json.dumps(request, indent=2), 2)}),
}});
if (!response.ok) throw new Error(await response.text());
const {{ jobId }} = await response.json();
console.log(jobId);""",
    )


def polling(origin: str) -> Snippets:
    """Return programs that wait for a job to end."""
    return Snippets(
        curl=f"""curl {origin}/v2/jobs/{JOB_ID} \\
  -H "X-API-Key: ${KEY_VARIABLE}\"""",
        python=f"""import os
import time
import requests

while True:
    response = requests.get(
        "{origin}/v2/jobs/{JOB_ID}",
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
  const response = await fetch("{origin}/v2/jobs/{JOB_ID}", {{
    headers: {{ "X-API-Key": process.env.{KEY_VARIABLE} }},
  }});
  if (!response.ok) throw new Error(await response.text());
  job = await response.json();
}} while (!["COMPLETED", "FAILED", "CANCELLED"].includes(job.status));
console.log(job.result ?? job.error);""",
    )


def uploading(origin: str) -> Snippets:
    """Return programs that upload a file; the `url` of the response can be used as `image`."""
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


def studio_programs(origin: str) -> dict[str, str]:
    """Return programs by language that upscale an image; the studio replaces `REQUEST_PLACEHOLDER` by its request."""
    return {
        "curl": f"""curl -X POST {origin}/v2/images/upscale \\
  -H "X-API-Key: ${KEY_VARIABLE}" \\
  -H "Content-Type: application/json" \\
  -H "Prefer: wait=20" \\
  -d {REQUEST_PLACEHOLDER}""",
        "python": f"""import os
import time
import requests

server = "{origin}"
session = requests.Session()
session.headers["X-API-Key"] = os.environ["{KEY_VARIABLE}"]
request = {REQUEST_PLACEHOLDER}

response = session.post(f"{{server}}/v2/images/upscale", json=request)
response.raise_for_status()
address = f"{{server}}/v2/jobs/{{response.json()['jobId']}}"
while (job := session.get(address).json())["status"] in ("QUEUED", "PROCESSING"):
    time.sleep(2)
print(job["result"]["images"][0] if job["result"] else job["error"])""",
        "javascript": f"""const server = "{origin}";
const headers = {{ "X-API-Key": process.env.{KEY_VARIABLE}, "Content-Type": "application/json" }};
const request = {REQUEST_PLACEHOLDER};

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
    """Return the response to a submission."""
    return json.dumps({"jobId": EXAMPLE_JOB, "status": "QUEUED"}, indent=2)


def completed(model: CatalogModel, origin: str, cost: int) -> str:
    """Return a finished job with its main fields."""
    job = {
        "id": EXAMPLE_JOB,
        "status": "COMPLETED",
        "model": model.id,
        "progress": 100,
        "result": {"images": [f"{origin}/files/images/{EXAMPLE_JOB}-1.png"]},
        "error": None,
        "creditCost": cost,
    }
    return json.dumps(job, indent=2)


def _indented(text: str, by: int) -> str:
    """Indent every line but the first."""
    return text.replace("\n", "\n" + " " * by)
