"""Configuration: files and overrides in file.py; sections in schema.py, data.py, stages.py."""

from diga_hpc.config.data import CustomClass, DataSection
from diga_hpc.config.file import as_yaml, differences, flat, identity, is_data_root, load, save
from diga_hpc.config.schema import (
    Config,
    EngineSection,
    GuardSection,
    LoggingSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    TeacherSection,
    TranslatorSection,
)
from diga_hpc.config.stages import (
    BatchSection,
    CentroidSection,
    DistillationSection,
    EvaluationSection,
    PseudoLabelSection,
    SelfTrainingSection,
    SourceOnlySection,
    TrainingSection,
    TranslationSection,
    WarmUpSection,
)

__all__ = [
    "BatchSection",
    "CentroidSection",
    "Config",
    "CustomClass",
    "DataSection",
    "DistillationSection",
    "EngineSection",
    "EvaluationSection",
    "GuardSection",
    "LoggingSection",
    "LossSection",
    "ModelSection",
    "OptimizerSection",
    "PseudoLabelSection",
    "SelfTrainingSection",
    "SourceOnlySection",
    "TeacherSection",
    "TrainingSection",
    "TranslationSection",
    "TranslatorSection",
    "WarmUpSection",
    "as_yaml",
    "differences",
    "flat",
    "identity",
    "is_data_root",
    "load",
    "save",
]
