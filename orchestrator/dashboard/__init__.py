"""The dashboard: pages for people, rendered on the server and legible without scripts.

Owns what is shown and how it is worded. Refuses to decide anything: its forms ask the rooms that the API asks.
"""

from orchestrator.dashboard import (
    access_pages,
    batch_actions,
    batch_list,
    batch_page,
    fleet,
    job_page,
    live,
    new_batch,
    overview,
    pictures,
    schedule_pages,
    sheet,
    static_files,
)
from orchestrator.dashboard.services import open_services

__all__ = ["ROUTERS", "UPLOADING", "open_services"]

ROUTERS = (
    static_files.public, overview.router, batch_list.router, batch_page.router, batch_actions.router, sheet.router,
    job_page.router, pictures.router, live.router, fleet.router, access_pages.router,
    schedule_pages.router, new_batch.router,
)  # fmt: skip
"""What the application includes."""
UPLOADING = (new_batch.uploading,)
"""Those that take bodies as large as `max_upload_bytes`."""
