"""A build step of the site: the one script that the theme would load from a CDN is taken from the site itself."""

from typing import Any

REMOTE = "https://unpkg.com/iframe-worker/shim"
LOCAL = "assets/iframe-worker.js"


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Point to the local copy, relative to the page."""
    return output.replace(REMOTE, "../" * page.url.count("/") + LOCAL)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same for pages that are not in the navigation (404)."""
    return output_content.replace(REMOTE, LOCAL)
