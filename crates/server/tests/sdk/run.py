#!/usr/bin/env python3
"""Runs every SDK and framework of docs/agents.md against ds4-server with its built-in model.

usage   cargo build --release -p ds4-cli --features server
        python3 crates/server/tests/sdk/run.py target/release/ds4-server [NAME ...]

Installs what is missing into target/sdk (or $SDK_FOLDER), from PyPI and npm, each in a folder of its own; starts the server on a free
port of this machine, runs `clients.py` and `clients.mjs` for every NAME (default: all), and prints a table. Exit status 1 if a check
fails, 2 if something could not be installed.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = pathlib.Path(os.environ.get("SDK_FOLDER", HERE.parents[3] / "target" / "sdk")).resolve()
PYTHON = {
    "openai": ["openai"],
    "anthropic": ["anthropic", "pydantic"],
    "langchain": ["langchain", "langchain-openai", "langchain-anthropic"],
    "pydantic_ai": ["pydantic-ai-slim[openai,anthropic]"],
    "instructor": ["instructor", "anthropic"],
    "litellm": ["litellm", "mcp"],
    "agents": ["openai-agents"],
}
NODE = ["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic", "zod", "openai", "@anthropic-ai/sdk"]
# What runs in the folder and not over the network: no proxy, no telemetry.
QUIET = {"DO_NOT_TRACK": "1", "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "AI_SDK_TELEMETRY_DISABLED": "1",
         "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "x"}


def quiet(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        print(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
        sys.exit(2)
    return done.stdout


def python_of(name):
    """The interpreter that has a library, and the versions of what was asked for."""
    venv = FOLDER / name
    python = venv / "bin" / "python"
    if not python.exists():
        quiet([sys.executable, "-m", "venv", venv])
        quiet([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PYTHON[name]])
    listed = {p["name"].lower(): p["version"] for p in json.loads(quiet([python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]))}
    asked = [re.split(r"[\[=<>]", package)[0].lower() for package in PYTHON[name]]
    return python, ", ".join(f"{package} {listed.get(package, '?')}" for package in asked)


def node_folder():
    folder = FOLDER / "node"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        quiet(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *NODE], cwd=folder)
    versions = [(name, json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]) for name in NODE]
    return folder, ", ".join(f"{name} {version}" for name, version in versions)


def start(program, folder):
    """A server on a free port, and its address."""
    log = open(folder / "server.log", "w+")
    server = subprocess.Popen([program, "--port", "0", "--ctx", "16384", "--parallel", "4", "--kv-disk-dir", folder / "states"],
                              stdout=log, stderr=subprocess.STDOUT)
    for _ in range(600):
        found = re.search(r"http://127\.0\.0\.1:(\d+)", pathlib.Path(log.name).read_text())
        if found:
            try:
                urllib.request.urlopen(found.group(0) + "/health").read()
                return server, found.group(0)
            except OSError:
                pass
        if server.poll() is not None:
            break
        time.sleep(0.1)
    print(pathlib.Path(log.name).read_text()[-2000:])
    sys.exit(2)


def main():
    program = sys.argv[1]
    names = sys.argv[2:] or [*PYTHON, "node"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server, url = start(program, pathlib.Path(folder))
        try:
            for name in names:
                if name == "node":
                    home, versions = node_folder()
                    (home / "clients.mjs").write_text((HERE / "clients.mjs").read_text())
                    command = ["node", home / "clients.mjs", url]
                else:
                    python, versions = python_of(name)
                    command = [python, HERE / "clients.py", name, url]
                print(f"{name}: {versions}", flush=True)
                ran = subprocess.run(command, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, text=True)
                lines = ran.stdout.splitlines()
                print("\n".join("  " + line for line in lines), flush=True)
                n_good = sum(line.startswith("good ") for line in lines)
                n_bad = sum(line.startswith("FAIL ") for line in lines) + (ran.returncode not in (0, 1))
                rows.append((name, versions, n_good, n_bad))
        finally:
            server.terminate()
            server.wait()
    print("\n| client | versions | checks good | not |\n|---|---|---|---|")
    for name, versions, n_good, n_bad in rows:
        print(f"| {name} | {versions} | {n_good} | {n_bad} |")
    return int(any(n_bad or not n_good for *_, n_good, n_bad in rows))


if __name__ == "__main__":
    sys.exit(main())
