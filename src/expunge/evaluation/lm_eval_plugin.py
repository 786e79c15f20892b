"""The model type `expunge` in lm-eval's own command, `lm_eval`.

lm-eval 0.4.13 loads no plugins, but it imports what a task file names with `!function`, and a file that stands among the tasks
on the command line is read before the model is made. The file beside this module (`lm_eval_plugin.yaml`) is a group without
tasks that names this module; importing it puts the type into lm-eval's table. So nothing is patched:

    PLUGIN=$(python -m expunge.evaluation.lm_eval_plugin)    # prints where the file is
    lm_eval --model expunge --model_args artifact=runs/npo --tasks arc_easy,$PLUGIN --batch_size 16

A task or group file of one's own becomes such a file by the line `metadata: {model: !function
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
