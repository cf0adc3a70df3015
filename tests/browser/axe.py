"""What shuts readers out of a page, as axe-core sees it."""

from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Page


def barriers(page: Page) -> list[str]:
    """What axe-core calls serious or critical."""
    if page.evaluate("!window.axe"):
        page.evaluate(AXE_FILE_PATH.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [
        f"{rule['id']}: {node['target']}: {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in {"serious", "critical"}
        for node in rule["nodes"]
    ]
