"""The rules a dataset is checked by, and what breaking one looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

RULES: dict[str, Severity] = {
    "unreadable": "error",
    "unread-format": "error",
    "zero-repeats": "error",
    "caption-missing": "error",
    "caption-unreadable": "error",
    "caption-encoding": "error",
    "caption-extension": "error",
    "caption-empty": "warning",
    "caption-unread": "warning",
    "caption-orphan": "warning",
    "misnamed-mask": "warning",
    "mask-missing": "warning",
    "mask-shape": "warning",
    "mask-empty": "warning",
    "upscaled": "warning",
    "extreme-aspect": "warning",
    "near-black": "warning",
    "near-white": "warning",
    "blurred": "warning",
    "jpeg-artefacts": "warning",
    "exact-duplicate": "warning",
    "near-duplicate": "warning",
    "validation-leak": "warning",
    "caption-too-long": "warning",
    "caption-brackets": "warning",
    "caption-escapes": "warning",
    "caption-metadata": "warning",
    "keep-separator": "warning",
    "duplicate-tags": "warning",
    "trigger-inconsistent": "warning",
    "near-miss-spelling": "warning",
    "lonely-bucket": "warning",
    "animated": "warning",
    "without-effect": "warning",
    "read-otherwise": "note",
    "huge": "note",
    "exif-rotated": "note",
    "alpha": "note",
    "grey": "note",
    "trigger-missing": "note",
    "tag-everywhere": "note",
}
"""Every rule and its severity. An error stops or spoils a run, a warning makes its result worse, a note informs."""

FIXABLE = (
    "unreadable",
    "exact-duplicate",
    "animated",
    "exif-rotated",
    "caption-extension",
    "caption-encoding",
    "duplicate-tags",
    "near-miss-spelling",
    "trigger-missing",
)
"""The rules that `fix.fixes` can put right, in the order in which it does."""


@dataclass(frozen=True)
class Finding:
    """One rule broken by one or more files."""

    rule: str
    message: str
    """A sentence: what is wrong, and what to do where no fix does it."""
    files: tuple[Path, ...] = ()
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """The numbers behind it, by name."""

    @property
    def severity(self) -> Severity:
        """error: the run would fail. warning: the adapter would suffer. note: worth knowing."""
        return RULES[self.rule]

    @property
    def fix(self) -> str | None:
        """The name of the fix, which is that of the rule, or None."""
        return self.rule if self.rule in FIXABLE else None


@dataclass(frozen=True)
class Report:
    """All findings of a check, worst first."""

    folders: tuple[Path, ...]
    images: int
    """Image files met, readable or not."""
    findings: tuple[Finding, ...]

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def of_rule(self, rule: str) -> list[Finding]:
        """The findings of one rule."""
        return [finding for finding in self.findings if finding.rule == rule]

    @property
    def summary(self) -> str:
        """How much was found, in words."""
        counts = {severity: len(self.of(severity)) for severity in SEVERITIES if self.of(severity)}
        found = [f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items()]
        return f"{self.images} image{'' if self.images == 1 else 's'}: {', '.join(found) or 'nothing to fix'}"

    def name(self, path: Path) -> str:
        """The path as shown: below its folder, with that folder's name when there are several."""
        return short_name(path, self.folders)

    def as_dict(self) -> dict[str, Any]:
        """All findings as plain values, as `--json` prints them."""
        return {
            "folders": [str(folder) for folder in self.folders],
            "images": self.images,
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "findings": [
                {
                    "severity": finding.severity,
                    **asdict(finding),
                    "fix": finding.fix,
                    "files": list(map(str, finding.files)),
                }
                for finding in self.findings
            ],
        }


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """By severity, then in the order of the rules, then of the files."""
    rules = list(RULES)
    return tuple(
        sorted(findings, key=lambda each: (SEVERITIES.index(each.severity), rules.index(each.rule), each.files))
    )


def short_name(path: Path, folders: Sequence[Path]) -> str:
    """A path below one of the folders, with that folder's name when there are several."""
    for folder in folders:
        if path.is_relative_to(folder):
            return path.relative_to(folder if len(folders) == 1 else folder.parent).as_posix()
    return str(path)
