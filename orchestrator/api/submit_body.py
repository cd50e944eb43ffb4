"""What the body of `POST /v1/batches` may be, as the description tells it: its reader takes it as it comes.

Owns the words alone; what is refused, `orchestrator.api.submit` decides.
"""

from typing import Any

_ITEM = {
    "type": "object",
    "properties": {
        "custom_id": {"type": "string"}, "image": {"type": "string"}, "prompt": {"type": "string"},
        "preset": {"type": "string"}, "seed": {"type": "integer"},
    },
    "required": ["image"],
}  # fmt: skip
_ASKED: dict[str, Any] = {
    "preset": {"type": "string", "examples": ["flat-lay"]},
    "prompt": {"type": "string"},
    "priority": {"type": "integer", "minimum": -100, "maximum": 100},
    "deadline": {"type": "string", "examples": ["2h"]},
    "max_error_rate": {"type": "number", "minimum": 0, "maximum": 1},
    "dry_run": {"type": "boolean"},
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        **_ASKED,
                        "items": {"type": "array", "items": _ITEM},
                        "catalogue": {"type": "string", "examples": ["s3://shop/catalogue.csv"]},
                        "options": {"type": "object", "examples": [{"steps": 8}]},
                        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                    },
                },
                "example": {
                    "preset": "flat-lay",
                    "items": [
                        {"custom_id": "dress-1", "image": "s3://shop/photos/dress-1.jpg"},
                        {"custom_id": "dress-2", "image": "https://images.example.com/2.jpg", "seed": 7},
                    ],
                    "metadata": {"season": "SS27"},
                },
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        **_ASKED,
                        "file": {"type": "string", "format": "binary", "description": ".csv .tsv .jsonl .parquet .zip"},
                        "options": {"type": "string", "description": "a JSON object"},
                        "metadata": {"type": "string", "description": "a JSON object"},
                    },
                },
                "example": {"file": "image,custom_id\ns3://shop/photos/dress-1.jpg,dress-1\n", "preset": "flat-lay"},
            },
        },
    }
}  # fmt: skip
