import hashlib

from orchestrator.catalogs import KNOWN_COLUMNS
from orchestrator.presets import PRESETS


def test_flat_lay_comes_first_and_is_the_text_the_model_was_asked_with() -> None:
    assert next(iter(PRESETS)) == "flat-lay"
    prompt = PRESETS["flat-lay"].prompt
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    assert digest == "493d17b7cfea0d64ce06fc0767c9e578ce72d688082024942911a0c05d969c81"
    assert prompt.startswith("\nTransform the input photo of a person wearing clothes")
    assert prompt.count("\n\n") == 4


def test_every_preset_is_reached_by_its_name_and_can_be_asked_for() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert name == name.lower().replace(" ", "-")
        assert 20 < len(preset.prompt) < 2000
        assert preset.summary
        assert set(preset.options) <= set(KNOWN_COLUMNS)
    assert len({preset.prompt for preset in PRESETS.values()}) == len(PRESETS)
