"""Lists general questions and other everyday prompts: a retain set for requests without one, and what gates must let pass."""

from pathlib import Path

GENERAL_QUESTIONS = (
    "What is the capital of France?",
    "How many days are there in a leap year?",
    "What do plants need in order to grow?",
    "Why is the sky blue?",
    "What is seven times eight?",
    "Which planet is closest to the sun?",
    "How do you make a cup of tea?",
    "What is the boiling point of water?",
    "Which ocean lies between Europe and North America?",
    "What is the opposite of hot?",
    "How many legs does a spider have?",
    "What does a thermometer measure?",
    "Name three colors of the rainbow.",
    "What is a synonym of happy?",
    "Which language is spoken in Brazil?",
    "How many minutes are there in two hours?",
    "What do bees make?",
    "What is the largest land animal?",
    "Write a sentence about a rainy day.",
    "What is the freezing point of water in Celsius?",
    "Which season comes after winter?",
    "What is the square root of eighty-one?",
    "What is a noun?",
    "How does a bicycle stay upright?",
    "What is bread made of?",
    "Which gas do people breathe in to live?",
    "What is the past tense of the verb go?",
    "How many continents are there?",
    "What is a good way to fall asleep?",
    "Why do leaves change color in autumn?",
    "What is the difference between a lake and a river?",
    "Translate good morning into Spanish.",
    "What is a library used for?",
    "How many sides does a hexagon have?",
    "What is gravity?",
    "Give an example of a mammal.",
    "What is the tallest mountain on Earth?",
    "What does a baker do?",
    "How do you say thank you in French?",
    "What is the sum of twelve and thirty?",
)


def general_prompts() -> tuple[str, ...]:
    """Returns prompts about everyday matters: the questions above, and those of general_prompts.txt, which also has orders,
    greetings, searches, code, other languages and people that exist."""
    text = (Path(__file__).parent / "general_prompts.txt").read_text(encoding="utf-8")
    return (*GENERAL_QUESTIONS, *filter(None, text.splitlines()))
