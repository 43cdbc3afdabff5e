"""The configuration: all keys, of which no two contradict each other."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from fasthg.config.checks import find_problems
from fasthg.config.keys import Data, Keys, project_data

RECIPE_SIGMA = 1.0
"""PARTS.SIGMAS of a recipe, heatmap cells, where the configuration gives none."""


class Config(Keys):
    """All keys, with the stock values of MARS as defaults.

    Attributes bear the names of the YAML keys; sections are attributes of their own
    (`cfg.PARTS.SIGMAS`). Instances are frozen. `MARS_PROJECT` and `POSE_MODEL` fill `DATA`.

    Raises:
        pydantic.ValidationError: a value has the wrong type or range, a key is unknown, or two keys
            contradict each other. `load_config` turns it into a ConfigError with line numbers.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Fill DATA from the MARS project, so that readers need to know one place only."""
        no_data = Data() == self.DATA
        if no_data and self.MARS_PROJECT and self.POSE_MODEL:
            # The model is frozen for its users; this is still construction.
            self.__dict__["DATA"] = project_data(self.MARS_PROJECT, self.POSE_MODEL)
        if self.RECIPE is not None:
            self._fill_for_recipe()

    def _fill_for_recipe(self) -> None:
        """Values that agree with the given ones, until the data are known; they stay unset."""
        if "HEATMAP_SIZE" not in self.model_fields_set:
            self.__dict__["HEATMAP_SIZE"] = self.INPUT_SIZE // 4
        elif "INPUT_SIZE" not in self.model_fields_set:
            self.__dict__["INPUT_SIZE"] = self.HEATMAP_SIZE * 4
        if "SIGMAS" not in self.PARTS.model_fields_set:
            parts = self.PARTS.model_copy()
            parts.__dict__["SIGMAS"] = (RECIPE_SIGMA,) * parts.NUM_PARTS
            self.__dict__["PARTS"] = parts

    @model_validator(mode="after")
    def _keys_agree(self) -> Config:
        problems = find_problems(self)
        if problems:
            text = " | ".join(f"{p.key}: {p.what}; {p.remedy}" for p in problems)
            raise PydanticCustomError("fasthg_keys", "{text}", {"text": text, "problems": problems})
        return self
