"""In JupyterLab a figure with sliders is live: a key moves a slider, the kernel computes, the drawing follows."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import nbformat
import psutil
import pytest
from browser import HERE, complaints, require, set_width
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

require()

CELL = """
import plotly.graph_objects as go
from nb_lib.page.explore import Slider, explore

def draw(slope):
    return go.Figure(go.Scatter(x=[0, 1], y=[0, slope]), {"template": "nb"}), f"The line ends at {slope:g}."

explore(draw, 1, name="line", caption="A.", alt="A line.", slope=Slider([0.0, 1.0, 2.0], "slope"))
"""
FOLDERS = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"), ("SETTINGS_DIR", "WORKSPACES_DIR")


@contextmanager
def lab(folder):
    """A JupyterLab server of its own, without the user's settings; gives its address with the token."""
    home = folder / "home"
    own = {f"JUPYTER_{name}": str(home / name) for name in FOLDERS[0]}
    own |= {f"JUPYTERLAB_{name}": str(home / name) for name in FOLDERS[1]} | {"IPYTHONDIR": str(home / "ipython")}
    settings = {
        "ServerApp.ip": HERE,
        "ServerApp.port": 0,
        "ServerApp.root_dir": folder / "notebooks",
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "test",
        "LabApp.open_browser": False,
        "LabApp.expose_app_in_browser": True,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in settings.items())]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        yield address(server, home / "RUNTIME_DIR", folder / "log")
    finally:
        stop(server)


def address(server, runtime, log):
    """Wait until the server has written down where it listens."""

    def written(_):
        assert server.poll() is None, log.read_text()
        return next(runtime.glob("jpserver-*.json"), None)

    file = WebDriverWait(None, 60).until(written, "JupyterLab does not start")
    info = json.loads(file.read_text())
    return f"http://{HERE}:{info['port']}/lab/tree/live.ipynb?token=test"


def stop(server):
    """Ask the server to end, which ends its kernels; what is still there then is killed."""
    if server.poll() is not None:
        return
    kernels = psutil.Process(server.pid).children(recursive=True)
    server.terminate()
    for process in psutil.wait_procs([psutil.Process(server.pid), *kernels], timeout=10)[1]:
        process.kill()
    server.wait()


@pytest.fixture
def notebook(tmp_path, browser):
    """A notebook with one figure, opened in JupyterLab and run."""
    (tmp_path / "notebooks").mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=kernel)
    nbformat.write(content, tmp_path / "notebooks/live.ipynb")
    complaints(browser)
    set_width(browser, 1240)
    with lab(tmp_path) as url:
        browser.get(url)
        wait(
            browser,
            60,
            "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.info",
            "no kernel",
        )
        browser.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
        yield browser
        browser.get("about:blank")


def wait(driver, seconds, condition, otherwise):
    return WebDriverWait(driver, seconds, 0.05).until(lambda d: d.execute_script(f"return {condition}"), otherwise)


# Of the drawing, its last point; of the key and of the drawing that follows it, the times.
PLOT = "document.querySelector('.jp-OutputArea-output .js-plotly-plot')"
SHOWN = f"{PLOT}?.data?.[0]?.y?.[1]"
WATCH = f"""
window.times = {{}};
addEventListener('keydown', () => {{ times.key ??= performance.now(); }}, true);
{PLOT}.on('plotly_afterplot', () => {{ if (times.key) times.drawn ??= performance.now(); }});
"""


def test_a_slider_moves_the_drawing_through_the_kernel(notebook, record_property):
    wait(notebook, 90, f"{SHOWN} === 0", "the figure is not drawn")
    # A key moves it by a quarter of a step, to a value that the book does not hold: only a kernel can draw that.
    handle = notebook.find_element(By.CSS_SELECTOR, ".jp-OutputArea-output .widget-slider [role='slider']")
    notebook.execute_script(WATCH)
    handle.send_keys(Keys.ARROW_RIGHT)
    wait(notebook, 20, f"{SHOWN} > 0 && times.drawn", "the drawing does not follow the slider")
    assert notebook.execute_script(f"return {SHOWN}") == 0.25
    (sentence,) = notebook.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output .widget-html p")
    WebDriverWait(notebook, 5).until(lambda _: sentence.text == "The line ends at 0.25.")
    assert not notebook.find_elements(By.CLASS_NAME, "nbx"), "the book's form is shown in JupyterLab"
    assert [c for c in complaints(notebook) if "another host" in c] == []
    milliseconds = notebook.execute_script("return times.drawn - times.key")
    record_property("measured", f"{milliseconds:4.0f} ms from a key to the drawing, through a kernel in JupyterLab")
