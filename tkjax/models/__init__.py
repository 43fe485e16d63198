"""The systems, one module each, and the one place that finds them by name."""

import difflib
import importlib
import pkgutil
import sys

from tkjax.interface import Model

SHARED = {"hash_head", "speaking"}  # modules beside the systems that are none


def systems() -> list[str]:
    """Names of the systems of this package."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - SHARED)


def load_system(name: str, stored: bool = False) -> type[Model]:
    """The Model class of the module `tkjax.models.<name>`, or of a dotted module path (plug-ins, tests).

    stored: the name stands in a file that may be a stranger's (an avatar, a workdir's config.json). Then nothing is
    imported for it beside the systems of this package: a dotted name counts only where the running program has imported
    that module before, as it does with a plug-in that the user named in a config of his own.

    Raises:
      ValueError: there is no such system.
    """
    known = systems()
    if name in known:
        return importlib.import_module(f"tkjax.models.{name}").Model
    if "." not in name:
        near = difflib.get_close_matches(name, known)
        raise ValueError(f"system {name[:80]!r} is unknown; choose one of {', '.join(near or known)}")
    if not stored:
        return importlib.import_module(name).Model
    plug_in = getattr(sys.modules.get(name), "Model", None)
    if name.startswith("tkjax.") or not (isinstance(plug_in, type) and issubclass(plug_in, Model)):
        raise ValueError(
            f"system {name[:80]!r} is none of this program's ({', '.join(known)}), and a stored file may not name "
            "code to run; give a config of your own with --config"
        )
    return plug_in
