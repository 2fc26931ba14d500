"""How fast and how frugal the page is: `python Testing/web/bench.py [start] [steps] [memory]` (default: all three).

start: seconds from `hiendseg app SAMPLE` to the first picture in a browser that is open already. steps: milliseconds
from a key to the next slice's picture, 1280 x 720, without and with a segmentation. memory: of the session and its
worker over 50 runs on a small volume. On a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from page_tools import FIRST_PICTURE, LATER, LONG, SAMPLE, Chrome, Site, Tab             # noqa: E402

#: The time from a key to the next picture of the axial view, and whether that picture is another one.
STEP = """(key) => new Promise((done, failed) => {
  const view = document.getElementById('view-axial').parentElement, image = view.querySelector('img');
  const before = image.src, start = performance.now();
  const timer = setTimeout(() => failed(new Error('no picture')), 5000);
  image.addEventListener('load', function loaded() {
    if (image.src === before) return;
    image.removeEventListener('load', loaded);
    clearTimeout(timer);
    requestAnimationFrame(() => done(performance.now() - start));
  });
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
})"""


def start(rounds: int) -> None:
    chrome = Chrome()
    seconds = []
    for _ in range(rounds):
        context = chrome.new_context()
        page = context.new_page()
        page.goto("about:blank")
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "HiEndSegLib.cli", "app", str(SAMPLE), "--no-browser"],
                                   cwd=HERE.parents[1], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        address = re.search(r"http\S+", process.stdout.readline()).group()
        printed = time.monotonic() - began
        page.goto(address)
        page.wait_for_function(FIRST_PICTURE, timeout=LATER, polling=20)
        seconds.append(time.monotonic() - began)
        print(f"start: address after {printed:.2f} s, first picture after {seconds[-1]:.2f} s", flush=True)
        context.close()
        process.send_signal(signal.SIGINT)
        process.wait(30)
    chrome.close()
    print(f"start: median {statistics.median(seconds):.2f} s of {rounds}", flush=True)


def steps(site: Site, chrome: Chrome, count: int) -> None:
    tab = Tab(chrome.context, site.address)
    tab.first_picture()
    _steps(tab, "CT", count)
    tab.click("seg-run")
    tab.wait_state("s.seg_phase === 'done'", LONG)
    tab.page.wait_for_timeout(2000)
    _steps(tab, "CT and segmentation", count)
    tab.close()


def _steps(tab: Tab, what: str, count: int) -> None:
    times = []
    for number in range(count):
        tab.page.wait_for_timeout(400)                      # until the picture that stays has come, too
        times.append(tab.page.evaluate(STEP, "ArrowUp" if number // 10 % 2 else "ArrowDown"))
    times.sort()
    print(f"step, {what}: median {statistics.median(times):.0f} ms, 90 % within {times[int(0.9 * count)]:.0f} ms, most "
          f"{times[-1]:.0f} ms, of {count}", flush=True)


def memory(site: Site, chrome: Chrome, runs: int, folder: Path) -> None:
    import nibabel
    import psutil

    path = folder / "small.nii.gz"
    nibabel.save(nibabel.load(SAMPLE).slicer[50:98, 30:78, 60:100], path)
    tab = Tab(chrome.context, site.home)
    tab.seen("open-file").set_input_files(path)
    tab.wait_state("s.seg_button_enabled", LATER)
    for run in range(1, runs + 1):
        tab.click("seg-run")
        if run > 1:
            tab.seen("seg-question").wait_for()
            tab.click("seg-answer-replace")
            tab.wait_state("s.seg_phase !== 'done' && s.seg_phase !== 'idle'", LONG)
        tab.wait_state("s.seg_phase === 'done'", LONG)
        if run in (1, 2, 5) or run % 10 == 0:
            facts = tab.facts()
            worker = psutil.Process(facts["worker"]).memory_info().rss
            print(f"memory: run {run}: session {facts['resident'] / 1e6:.0f} MB, worker {worker / 1e6:.0f} MB, "
                  f"{facts['nodes']['vtkMRMLNode']} nodes", flush=True)
    tab.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["start", "steps", "memory", []], default=[])
    parser.add_argument("--rounds", type=int, default=3, help="starts (default 3)")
    parser.add_argument("--steps", type=int, default=40, help="slices (default 40)")
    parser.add_argument("--runs", type=int, default=50, help="segmentations (default 50)")
    options = parser.parse_args()
    what = options.what or ["start", "steps", "memory"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HIENDSEG_MODELS"] = str(Path(folder) / "models")
        if "start" in what:
            start(options.rounds)
        if {"steps", "memory"} & set(what):
            site, chrome = Site(Path(folder), Path(folder) / "models"), Chrome()
            try:
                if "steps" not in what:
                    Tab(chrome.context, site.address).close()
                else:
                    steps(site, chrome, options.steps)
                if "memory" in what:
                    memory(site, chrome, options.runs, Path(folder))
            finally:
                chrome.close()
                site.close()


if __name__ == "__main__":
    main()
