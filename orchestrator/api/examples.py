"""An example of each shape that the API answers with, whole, as a shop sees it; the description shows them.

Owns the data alone. What bodies and parameters look like stands where they are declared.
"""

from collections.abc import Mapping
from typing import Any

_AT, _BATCH, _REVISION = 1_795_600_000, "20261125-1f2e3d4c", "4f1c2a9be077" + "0" * 52
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_WORKER = "gpu-1-worker-2f9c"
_FAILURE = {"code": "image_missing", "count": 2, "message": "photos/7.jpg does not exist; correct the path"}
_COUNTS = {
    "total": 1000, "pending": 600, "queued": 60, "running": 8, "succeeded": 330, "failed": 2, "cancelled": 0,
    "completed": 330, "reused": 12,
}  # fmt: skip
_BATCH_TOLD: Mapping[str, Any] = {
    "id": _BATCH, "object": "batch", "status": "running", "reason": None, "request_counts": _COUNTS, "created_at": _AT,
    "in_progress_at": _AT + 4, "completed_at": None, "cancelled_at": None, "failed_at": None,
    "expires_at": _AT + 28_800, "priority": 0, "catalogue": "s3://shop/catalogue.csv",
    "options": {"preset": "flat-lay"}, "metadata": {"season": "SS27"},
    "checkpoint": "s3://shop/checkpoints/kontext", "checkpoint_revision": _REVISION,
    "numerics": "bfloat16/v2", "manifest": None, "stage_seconds": None,
    "results": f"s3://shop-results/{_BATCH}", "manifest_url": f"/v1/batches/{_BATCH}/manifest.jsonl",
    "errors": [_FAILURE], "rate_per_s": 2.4, "eta_s": 278.3,
}  # fmt: skip
_JOB: Mapping[str, Any] = {
    "id": 4711, "object": "job", "batch_id": _BATCH, "custom_id": "dress-0815", "line": 17, "take": 1,
    "image": "photos/dress-0815.jpg", "state": "succeeded", "stage": None, "attempt": 0, "attempts": 1,
    "revision": _REVISION, "code": None,
    "message": None, "result": f"s3://shop-results/{_BATCH}/dress-0815.png", "result_url": "/v1/jobs/4711/result",
    "sha256": _SHA256, "seed": 0, "seconds": 3.2, "reused": False, "canvas": "880x1184", "recipe": "a3f09c51e2d4",
    "priority": 0, "decision": "approved", "ended_at": _AT + 90,
}  # fmt: skip
_STAGE = {"stage": "sample", "began_at": _AT + 84.2, "ended_at": _AT + 87.1, "worker": _WORKER, "seconds": 2.9}
_ATTEMPT = {
    "attempt": 0, "stage": "encode", "outcome": "retry", "worker": _WORKER, "code": "source_unavailable",
    "message": "status 503", "began_at": _AT + 20.0, "ended_at": _AT + 21.5,
}  # fmt: skip
_RECIPE = {"prompt": "a flat lay of the garment", "steps": 28, "guidance": 2.5, "sampler": "euler"}
_KEY: Mapping[str, Any] = {
    "id": "3f2a91c07b5e", "object": "api_key", "name": "shop system", "scope": "submit", "created_at": _AT,
    "last_used_at": _AT + 600, "revoked_at": None,
}  # fmt: skip
_RUN: Mapping[str, Any] = {
    "id": 31, "object": "run", "schedule": "nightly", "fire_at": float(_AT), "by_request": False, "missed": 0,
    "state": "ended", "reason": None, "batch_id": _BATCH, "batch_status": "completed", "created_at": _AT,
    "started_at": _AT + 2, "ended_at": _AT + 3_600,
    "report": {"total": 1200, "new": 12, "changed": 3, "reused": 1184, "failed": 1, "cancelled": 0},
}  # fmt: skip
_SCHEDULE: Mapping[str, Any] = {
    "name": "nightly", "object": "schedule", "cron": "0 2 * * *", "time_zone": "Asia/Shanghai",
    "catalogue": "s3://shop/catalogue.csv", "options": {"preset": "flat-lay", "deadline": "6h"}, "results_uri": None,
    "priority": 0, "only_changed": True, "overlap": "skip", "missed": "once", "paused": False,
    "next_fire_at": _AT + 86_400, "created_at": _AT - 86_400, "last_run": _RUN,
}  # fmt: skip
_WEBHOOK: Mapping[str, Any] = {
    "id": "wh_4f1c2a9be077", "object": "webhook", "url": "https://shop.example.com/hooks/kontext",
    "events": ["batch.completed", "batch.failed"], "created_at": _AT, "rotated_at": None,
}  # fmt: skip
_TRY = {"attempt": 1, "at": _AT + 3_601.0, "status": 204, "latency_s": 0.084, "error": None, "answer": ""}
_DELIVERY: Mapping[str, Any] = {
    "id": 902, "object": "delivery", "webhook_id": "wh_4f1c2a9be077", "message_id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "event": "batch.completed", "state": "delivered", "attempts": 1, "status": 204, "latency_s": 0.084, "error": None,
    "created_at": _AT + 3_600, "next_at": None, "ended_at": _AT + 3_601,
}  # fmt: skip
_ROW_ERROR = {
    "line": 3, "custom_id": "dress-3", "code": "missing_image",
    "message": "items, line 3, column image: the cell is empty; give a path or a URI",
}  # fmt: skip
_QUEUE = {"stage": "sample", "queued": 60, "running": 8, "messages": 8}

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "AttemptShape": _ATTEMPT,
    "AuditShape": {
        "id": 128, "object": "audit_entry", "at": _AT + 40.5, "caller": "key:3f2a91c07b5e", "action": "batch.pause",
        "target": _BATCH, "detail": {},
    },
    "BatchShape": _BATCH_TOLD,
    "CallerShape": {"id": "key:3f2a91c07b5e", "object": "caller", "name": "shop system", "scope": "submit"},
    "DeliveryDetail": {
        **_DELIVERY, "log": [_TRY],
        "body": f'{{"type": "batch.completed", "timestamp": "2026-11-25T09:46:40Z", "data": {{"batch": "{_BATCH}"}}}}',
    },
    "DeliveryShape": _DELIVERY,
    "DryRunShape": {
        "object": "dry_run", "rows": 1000, "bad": 1, "recipes": 1, "errors": [_ROW_ERROR], "warnings": [],
        "estimated_seconds": 5900.0, "estimated_wall_s": 2950.0, "estimated_cost": 4.1, "bytes_sent": 120_000,
    },
    "JobDetail": {
        **_JOB, "given": {"season": "SS27"}, "recipe_body": _RECIPE, "stages": [_STAGE], "history": [_ATTEMPT],
        "takes": [_JOB],
    },
    "JobShape": _JOB,
    "KeyShape": _KEY,
    "NewKeyShape": {**_KEY, "secret": "kx_3f2a91c07b5e_…"},
    "OverviewShape": {
        "at": _AT + 60.0, "batches": {"running": 2, "completed": 30}, "queues": [_QUEUE], "workers": 2,
        "images_by_minute": [[_AT, 144]], "failures": [_FAILURE],
    },
    "PresetShape": {
        "name": "flat-lay", "summary": "the garment alone, laid flat on white", "prompt": "a flat lay of the garment",
        "negative_prompt": None, "options": {},
    },
    "QueueShape": _QUEUE,
    "RecipeShape": {"id": "a3f09c51e2d4", "object": "recipe", "body": _RECIPE},
    "RowError": _ROW_ERROR,
    "RunShape": _RUN,
    "ScheduleChange": {"cron": "30 1 * * *", "time_zone": "Europe/Rome", "paused": False},
    "ScheduleDetail": {**_SCHEDULE, "next_fires": [_AT + 86_400, _AT + 172_800]},
    "ScheduleShape": _SCHEDULE,
    "StageShape": _STAGE,
    "TryShape": _TRY,
    "UploadShape": {"name": f"{_SHA256}.jpg", "exists": False, "url": f"/v1/uploads/{_SHA256}.jpg", "headers": {}},
    "WebhookSecret": {**_WEBHOOK, "secret": "whsec_…"},
    "WebhookShape": _WEBHOOK,
    "WorkerShape": {
        "id": _WORKER, "host": "gpu-1", "pid": 814, "stages": ["encode", "sample", "decode"], "device": "cuda:0",
        "revision": _REVISION, "numerics": "bfloat16/v2", "started_at": _AT - 3_600.0, "seen_at": _AT + 59.0,
        "memory_bytes": 9_700_000_000, "jobs": [4711],
    },
}  # fmt: skip
"""By the name that a shape has in the description."""
