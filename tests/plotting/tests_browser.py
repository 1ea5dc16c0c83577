"""Headless Chromium over the DevTools protocol: open a file, move, click, type, ask."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import websocket


def find():
    """Path of a Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    def __init__(self, path, width=1200, height=900):
        self._profile = tempfile.mkdtemp()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options += ["--remote-debugging-port=0", "--remote-allow-origins=*"]
        options += [f"--user-data-dir={self._profile}", f"--window-size={width},{height}"]
        # No name resolves, so a page that asks for anything from a network is found out.
        options += ["--host-resolver-rules=MAP * ~NOTFOUND", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([path, *options], **quiet)
        port, path = self._endpoint()
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}{path}", timeout=60, enable_multithread=False
        )
        self._count, self._session, self.events = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _endpoint(self):
        port_file = Path(self._profile) / "DevToolsActivePort"
        for _ in range(600):
            if port_file.is_file() and len(lines := port_file.read_text().splitlines()) == 2:
                return lines
            time.sleep(0.1)
        raise RuntimeError("Chromium did not start")

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            reply = json.loads(self._socket.recv())
            if reply.get("id") == self._count:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def open(self, path):
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        for _ in range(300):
            if self.ask("document.readyState === 'complete' && location.protocol === 'file:'"):
                return
            time.sleep(0.1)
        raise RuntimeError("the page did not load")

    def ask(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def mouse(self, selector, click=False):
        x, y = self.ask(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
                )

    def key(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def type(self, text):
        self.call("Input.insertText", text=text)

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def problems(self):
        """Exceptions, console errors, and requests that left the file."""
        bad = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                bad.append(event)
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                bad.append(params["entry"]["text"])
            if event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    bad.append(url)
        return bad

    def close(self):
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        shutil.rmtree(self._profile, ignore_errors=True)
