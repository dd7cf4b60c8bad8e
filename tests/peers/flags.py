"""The command-line arguments of open_clip_train, as its parser says them.

    python tests/peers/flags.py            compares tests/goldens/flags.json with the installed open_clip_train
    python tests/peers/flags.py --write    writes it
"""
import argparse, importlib.metadata, importlib.util, json, pathlib, sys

GOLDEN = pathlib.Path(__file__).parent.parent / "goldens/flags.json"


def flags():
    # The module alone: its package would import torch.
    root = importlib.metadata.distribution("open_clip_torch").locate_file("open_clip_train/params.py")
    spec = importlib.util.spec_from_file_location("params", root)
    params = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(params)
    seen = []

    class Parser(argparse.ArgumentParser):
        def parse_args(self, args=None, namespace=None):
            seen.extend(action for action in self._actions if action.dest != "help")
            return super().parse_args(args, namespace)

    params.argparse = type("argparse", (), {**vars(argparse), "ArgumentParser": Parser})
    params.parse_args([])
    takes = lambda action: "none" if action.nargs == 0 else "many" if action.nargs in ("+", "*") else "one"
    return {action.option_strings[0]: {"takes": takes(action), "default": action.default} for action in seen}


told = {"made_by": "tests/peers/flags.py", "open_clip_torch": importlib.metadata.version("open_clip_torch"), "flags": flags()}
text = json.dumps(told, indent=1, sort_keys=True) + "\n"
if "--write" in sys.argv:
    GOLDEN.write_text(text)
elif GOLDEN.read_text() != text:
    sys.exit(f"{GOLDEN} is not what open_clip_train says; see the differences, then --write")
