"""The page that asks for a key, and says why one was refused."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from orchestrator.dashboard.page import THEME_COOKIE, THEMES, environment


def show_door(request: Request, target: str, problem: str = "") -> HTMLResponse:
    """Ask for a key; `target` is the path to go on to, `problem` what was wrong with the last one."""
    theme = request.cookies.get(THEME_COOKIE, "")
    told = {"target": target, "problem": problem, "theme": theme if theme in THEMES else ""}
    text = environment().get_template("sign_in.html").render(told)
    return HTMLResponse(text, status_code=401 if problem else 200)
