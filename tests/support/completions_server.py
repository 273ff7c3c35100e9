"""A small server of OpenAI's completions with real log-probabilities: `python completions_server.py MODEL PORT`.

It answers `/v1/models` and `/v1/completions` as vLLM does (token ids or text, lists of them, `echo`, `logprobs`,
API key), from a model folder, one plain forward pass a prompt; the tests hold its answers beside vLLM's where that is
installed. Below `/busy/v1`, `/slow/v1` and `/silent/v1` it misbehaves: every other request is answered 503, after
a second, or without log-probabilities.
"""

import os
import sys
import time
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "tiny"


class Completions:
    """One model and what it says."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = body["prompt"]
        if not isinstance(asked, list) or isinstance(asked[0], int):  # a single one
            asked = [asked]
        prompts = [p if isinstance(p, list) else self.tokenizer(p)["input_ids"] for p in asked]
        choices = [self._choice(ids, index, body) for index, ids in enumerate(prompts)]
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": body["max_tokens"] * len(prompts)}
        return {"object": "text_completion", "model": NAME, "choices": choices, "usage": usage}

    @torch.no_grad()
    def _choice(self, prompt: list[int], index: int, body: dict[str, Any]) -> dict[str, Any]:
        ids = list(prompt)
        for _ in range(body["max_tokens"]):
            ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == self.tokenizer.eos_token_id:
                break
        shown = ids if body.get("echo") else ids[len(prompt) :]
        choice = {"index": index, "text": self.tokenizer.decode(shown, skip_special_tokens=True), "logprobs": None}
        if body.get("logprobs") is not None:
            logits = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            logps = [None, *(float(logits[i, t]) for i, t in enumerate(ids[1:]))]
            choice["logprobs"] = {"token_logprobs": logps[len(ids) - len(shown) :]}
        return choice


def make_app(folder: str) -> FastAPI:
    app, completions, asked = FastAPI(), Completions(folder), iter(range(10**9))

    @app.middleware("http")
    async def key(request: Any, call_next: Any) -> Any:
        wanted = os.environ.get("SERVER_KEY")
        if wanted and request.url.path != "/health" and request.headers.get("authorization") != f"Bearer {wanted}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        return await call_next(request)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {}

    @app.get("/{habit}/v1/models")
    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": NAME}]}

    @app.post("/{habit}/v1/completions")
    @app.post("/v1/completions")
    def complete(body: dict[str, Any], habit: str = "") -> Any:
        if habit == "busy" and next(asked) % 2 == 0:
            return JSONResponse({"detail": "come back"}, status_code=503, headers={"Retry-After-Ms": "10"})
        if habit == "slow":
            time.sleep(1)
        if body["model"] != NAME:
            message = f"The model `{body['model']}` does not exist."
            return JSONResponse({"error": {"message": message, "code": 404}}, status_code=404)
        if habit == "silent":
            body["logprobs"] = None
        return completions.answer(body)

    return app


if __name__ == "__main__":
    _, folder, port = sys.argv
    torch.set_num_threads(1)
    uvicorn.run(make_app(folder), host="127.0.0.1", port=int(port), log_level="warning")
