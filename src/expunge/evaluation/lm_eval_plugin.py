"""Registers the model type `expunge` in lm-eval's own command, `lm_eval`.

lm-eval 0.4.13 has no plugins, but it imports what a task file refers to with `!function`, and task files on the command line are
read before the model is made. The file beside this module (`lm_eval_plugin.yaml`) is a group without tasks that refers to this
module, whose import adds the type to lm-eval's table. Nothing is patched:

    PLUGIN=$(python -m expunge.evaluation.lm_eval_plugin)    # prints where the file is
    lm_eval --model expunge --model_args artifact=runs/npo --tasks arc_easy,$PLUGIN --batch_size 16

Your own task or group file has the same effect with the line `metadata: {model: !function
expunge.evaluation.lm_eval_plugin.MODEL_TYPE}`.
"""

from pathlib import Path

FILE = Path(__file__).with_suffix(".yaml")
MODEL_TYPE = "expunge"

if __name__ == "__main__":
    print(FILE)
else:
    from expunge.evaluation.lm_eval import register

    register()
