"""wordings: owns what people ask of the appliance's own tools, in many words, and the calls that answer it. Pure.

The wordings of `held_out` are never trained: they are what a model is tested with. {names} are filled in by `slots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to ask for."""

    tool: str
    arguments: Mapping[str, str]
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]
    result: str = ""  #: what the tool answers; "": the row ends with the call
    answer: str = ""  #: what is said then


def _bash(command: str, wordings: str, held_out: str, result: str = "", answer: str = "") -> Task:
    return _task("bash", {"command": command}, wordings, held_out, result, answer)


def _python(code: str, wordings: str, held_out: str, result: str = "", answer: str = "") -> Task:
    return _task("python", {"code": code}, wordings, held_out, result, answer)


def _task(  # noqa: PLR0913, PLR0917 a row of a table
    tool: str, arguments: dict[str, str], wordings: str, held_out: str, result: str = "", answer: str = ""
) -> Task:
    return Task(
        tool, MappingProxyType(arguments), tuple(wordings.split("|")), tuple(held_out.split("|")), result, answer
    )


#: One line, one wording group: parts are separated by "|".
TASKS: Final[tuple[Task, ...]] = (
    _bash(
        "find . -type f | wc -l",
        "How many files do I have?|Count the files in my workspace.|Tell me the number of files in the workspace"
        "|What is the total count of files here?|Count all files|I want to know how many files there are",
        "How many files are in my workspace?|Give me the file count of this workspace",
        "{n}",
        "There are {n} files in your workspace.",
    ),
    _bash(
        "find {dir} -type f | wc -l",
        "How many files are in {dir}?|Count the files in {dir}|Tell me the number of files below {dir}"
        "|What is the file count of the folder {dir}?|Count everything that is a file in {dir}",
        "How many files does the directory {dir} hold?|Number of files in {dir}?",
        "{n}",
        "{dir} holds {n} files.",
    ),
    _bash(
        "wc -l {file}",
        "How many lines does {file} have?|Count the lines of {file}|Tell me the number of lines in {file}"
        "|What is the line count of {file}?|How long is {file} in lines?",
        "How many lines are in {file}?|Line count for {file}?",
        "{n} {file}",
        "{file} has {n} lines.",
    ),
    _bash(
        "wc -w {file}",
        "How many words does {file} have?|Count the words of {file}|Tell me the number of words in {file}"
        "|What is the word count of {file}?",
        "How many words are in {file}?|Word count for {file}?",
        "{n} {file}",
        "{file} has {n} words.",
    ),
    _bash(
        "du -sh {dir}",
        "How big is the folder {dir}?|What is the size of {dir}?|How much space does {dir} take?"
        "|Tell me the disk usage of {dir}|Measure the size of the directory {dir}",
        "How large is {dir}?|How much disk does {dir} use?",
        "{n}M\t{dir}",
        "{dir} takes {n} MB.",
    ),
    _bash(
        "df -h",
        "How much disk space is left?|Show the free disk space|How full is the disk?|Report disk usage of the system",
        "Is there still room on the disk?|What is the free space on disk?",
    ),
    _bash(
        "date",
        "What time is it?|What is today's date?|Tell me the current date and time|Show the system date",
        "What day is it today?|Give me the time right now",
    ),
    _bash("pwd", "Which directory am I in?|Print the working directory|Show the current directory", "Where am I?"),
    _bash("whoami", "Which user am I?|What is my user name here?|Print the current user", "Who am I logged in as?"),
    _bash(
        "uname -a",
        "Which kernel runs here?|Show the system information|What kernel version is this?",
        "Which Linux is this?",
    ),
    _bash(
        "mkdir -p {dir}",
        "Create the directory {dir}|Make a folder called {dir}|Create a folder {dir}|Make the directory {dir}"
        "|Add a new folder named {dir}",
        "I need a directory named {dir}|Set up a folder {dir}",
        "(no output)",
        "The folder {dir} is there now.",
    ),
    _bash(
        "rm {file}",
        "Delete {file}|Remove the file {file}|Delete the file {file}|Get rid of {file}|Remove {file}",
        "Erase {file}|Throw {file} away",
        "(no output)",
        "{file} is deleted.",
    ),
    _bash(
        "cp {file} {other}",
        "Copy {file} to {other}|Make a copy of {file} named {other}|Duplicate {file} as {other}"
        "|Copy the file {file} to {other}",
        "Put a copy of {file} at {other}",
        "(no output)",
        "{file} is copied to {other}.",
    ),
    _bash(
        "mv {file} {other}",
        "Rename {file} to {other}|Move {file} to {other}|Move the file {file} to {other}"
        "|Change the name of {file} to {other}",
        "Let {file} be called {other}",
        "(no output)",
        "{file} is now {other}.",
    ),
    _bash(
        "head -n {n} {file}",
        "Show the first {n} lines of {file}|Print the top {n} lines of {file}|What are the first {n} lines of {file}?"
        "|Give me the first {n} lines of {file}",
        "Let me see the first {n} lines in {file}",
    ),
    _bash(
        "tail -n {n} {file}",
        "Show the last {n} lines of {file}|Print the bottom {n} lines of {file}|What are the last {n} lines of {file}?"
        "|Give me the last {n} lines of {file}",
        "Let me see the last {n} lines in {file}",
    ),
    _bash(
        "sort {file}",
        "Sort the lines of {file}|Print {file} sorted|Show {file} in sorted order",
        "Give me {file} sorted by line",
    ),
    _bash(
        "sort -u {file}",
        "Show the unique lines of {file}|Print {file} without duplicate lines|List the distinct lines of {file}",
        "Which distinct lines does {file} have?",
    ),
    _bash(
        "sha256sum {file}",
        "What is the SHA-256 of {file}?|Compute the SHA-256 hash of {file}|Hash {file} with SHA-256",
        "Give me the sha256 checksum of {file}",
    ),
    _bash(
        "ls -lt",
        "Which files changed last?|Show the newest files first|List the files by date",
        "What was modified most recently?",
    ),
    _bash(
        "touch {file}",
        "Create an empty file {file}|Make an empty file called {file}|Touch {file}",
        "I need an empty file {file}",
    ),
    _bash(
        "python3 {script}",
        "Run the script {script}|Execute {script}|Start the program {script}|Run {script}",
        "Please launch {script}",
    ),
    _bash(
        "{command}",
        "Run the command `{command}`|Execute `{command}`|Run `{command}` in bash|Run this shell command: {command}"
        "|Type `{command}` in the shell|Use bash to run {command}",
        "Execute the shell command {command}|What does `{command}` print?",
    ),
    _python(
        "print({a} * {b})",
        "What is {a} times {b}?|Multiply {a} by {b}|Calculate {a} * {b}|Compute the product of {a} and {b}"
        "|{a} x {b} = ?",
        "How much is {a} times {b}?|What do you get for {a} multiplied by {b}?",
        "{product}",
        "{a} times {b} is {product}.",
    ),
    _python(
        "print({a} + {b})",
        "What is {a} plus {b}?|Add {a} and {b}|Calculate {a} + {b}|Compute the sum of {a} and {b}",
        "How much is {a} plus {b}?|Sum up {a} and {b}",
        "{sum}",
        "{a} plus {b} is {sum}.",
    ),
    _python(
        "print({a} - {b})",
        "What is {a} minus {b}?|Subtract {b} from {a}|Calculate {a} - {b}|Compute the difference of {a} and {b}",
        "How much is {a} minus {b}?",
    ),
    _python(
        "print({a} / {b})",
        "What is {a} divided by {b}?|Divide {a} by {b}|Calculate {a} / {b}",
        "How much is {a} divided by {b}?",
    ),
    _python(
        "print({a} % {b})",
        "What is the remainder of {a} divided by {b}?|Calculate {a} modulo {b}|Compute {a} mod {b}",
        "What is left when {a} is divided by {b}?",
    ),
    _python(
        "print({a} ** {n})",
        "What is {a} to the power of {n}?|Raise {a} to the power {n}|Calculate {a} ** {n}",
        "How much is {a} to the {n}th power?",
    ),
    _python(
        "import math; print(math.sqrt({a}))",
        "What is the square root of {a}?|Compute the square root of {a}|Calculate sqrt({a})",
        "Give me the root of {a}",
    ),
    _python(
        "import math; print(math.factorial({n}))",
        "What is the factorial of {n}?|Compute {n}!|Calculate the factorial of {n}",
        "How much is {n} factorial?",
    ),
    _python(
        "print(sum(range(1, {a} + 1)))",
        "Sum the numbers from 1 to {a}|Add up all numbers from 1 to {a}|What is the sum of 1 to {a}?",
        "Total of the integers 1 through {a}?",
    ),
    _python(
        'print("{word}"[::-1])',
        'Reverse the word "{word}"|Spell "{word}" backwards|Write the string "{word}" in reverse',
        'What is "{word}" backwards?',
    ),
    _python(
        'print("{word}".upper())',
        'Write "{word}" in capital letters|Convert "{word}" to upper case|Make "{word}" uppercase',
        'Give me "{word}" in capitals',
    ),
    _python(
        'print(len("{word}"))',
        'How many letters does "{word}" have?|Count the characters in "{word}"|What is the length of "{word}"?',
        'How long is the string "{word}"?',
    ),
    _python(
        "{code}",
        "Run this Python code: {code}|Execute the Python code `{code}`|Run `{code}` in Python|Use Python to run {code}",
        "What does the Python program `{code}` print?",
    ),
    _task(
        "javascript",
        {"code": "console.log({a} * {b});"},
        "Use JavaScript to multiply {a} by {b}|In Node.js, compute {a} * {b}|With JavaScript, what is {a} times {b}?",
        "Compute {a} times {b} with Node",
    ),
    _task(
        "javascript",
        {"code": "{js}"},
        "Run this JavaScript: {js}|Execute `{js}` with Node.js|Run `{js}` in Node",
        "What does the JavaScript `{js}` print?",
    ),
    _task(
        "read_file",
        {"path": "{file}"},
        "Show me {file}|Read {file}|What is in {file}?|Open {file}|Print the contents of {file}|Display the file {file}"
        "|What does {file} say?|Show the content of {file}",
        "Let me see {file}|Can I have a look at {file}?|Read me the file {file}",
        "{text}",
        "{file} says: {text}",
    ),
    _task(
        "read_file",
        {"path": "{file}", "offset": "{m}", "limit": "{n}"},
        "Read {n} lines of {file}, starting at line {m}|Show {n} lines of {file} from line {m} on"
        "|Read {file} from line {m}, {n} lines",
        "From line {m} of {file}, read {n} lines",
    ),
    _task(
        "write_file",
        {"path": "{file}", "content": "{text}"},
        'Write "{text}" to {file}|Save "{text}" in {file}|Create {file} with the text "{text}"'
        '|Put "{text}" into {file}|Make a file {file} that says "{text}"|Store the text "{text}" in the file {file}',
        'Create the file {file} containing "{text}"|Let {file} hold the words "{text}"',
        "wrote {n} bytes to {file}",
        "{file} is written.",
    ),
    _task(
        "edit_file",
        {"path": "{file}", "old": "{word}", "new": "{word2}"},
        'Replace "{word}" by "{word2}" in {file}|In {file}, change "{word}" to "{word2}"'
        '|Edit {file}: "{word}" becomes "{word2}"|Substitute "{word2}" for "{word}" in {file}'
        '|Change "{word}" to "{word2}" in {file}',
        'In {file}, swap "{word}" for "{word2}"|The word "{word}" in {file} should be "{word2}"',
        "edited {file}, {n} bytes now",
        'In {file}, "{word}" is "{word2}" now.',
    ),
    _task(
        "list_files",
        {"path": "{dir}"},
        "List the files in {dir}|Show the contents of the folder {dir}|What is in the directory {dir}?|List {dir}"
        "|Which files are in {dir}?|Show me what {dir} contains",
        "What files does {dir} have?|Let me see the folder {dir}",
        "{dir}/{file}  {n}",
        "{dir} holds {file}.",
    ),
    _task(
        "list_files",
        {"path": "."},
        "List my files|Which files are in my workspace?|Show all files in the workspace|List the workspace"
        "|What files do I have?",
        "Show me what is in my workspace|What is here?",
    ),
    _task(
        "search_files",
        {"pattern": "{word}"},
        'Find the lines with "{word}"|Search my files for "{word}"|Where does "{word}" occur?'
        '|Look for "{word}" in all files'
        '|Search for the text "{word}"',
        'Which files mention "{word}"?|Grep for "{word}"',
        "{file}:{n}: {word}",
        'Line {n} of {file} has "{word}".',
    ),
    _task(
        "search_files",
        {"pattern": "{word}", "path": "{dir}"},
        'Search {dir} for "{word}"|Find "{word}" in the folder {dir}|Look for "{word}" below {dir}'
        '|Which lines in {dir} hold "{word}"?',
        'Where in {dir} is "{word}"?|Grep {dir} for "{word}"',
    ),
    _task(
        "glob",
        {"pattern": "**/*.{ext}"},
        "Find all .{ext} files|Which {ext} files are there?|List every {ext} file|Find all files that end in .{ext}"
        "|Find every *.{ext} file",
        "Where are my {ext} files?|Look for files ending with .{ext}",
        "{stem}.{ext}",
        "There is one: {stem}.{ext}.",
    ),
    _task(
        "glob",
        {"pattern": "**/{file}"},
        "Find the file named {file}|Where is the file {file}?|Locate {file}|Find a file called {file}",
        "Which folder has {file}?|Track down the file {file}",
    ),
)

#: Said without a tool, whatever is on offer: (asked, answered).
TALK: Final[tuple[tuple[str, str], ...]] = (
    ("Hello!", "Hello! What can I do for you?"),
    ("Hi there", "Hi! How can I help?"),
    ("Good morning", "Good morning! What shall we do today?"),
    ("Thank you!", "You're welcome."),
    ("Thanks, that was all", "Gladly. Have a good day!"),
    ("Who are you?", "I am the assistant of this appliance. I can run commands and work with your files."),
    ("What can you do?", "I can run shell commands and programs, and read, write and search files in your workspace."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("Name three colours", "Red, green and blue."),
    ("Name three fruits", "Apples, pears and cherries."),
    ("Write one short sentence about the sea", "The sea is calm and wide this morning."),
    ("Write a sentence about winter", "In winter the fields lie quiet under the snow."),
    ("Explain what recursion is", "Recursion is when something is defined by a smaller case of itself."),
    ("What is a variable in programming?", "A variable is a name for a value that a program can read and change."),
    ("What does CPU stand for?", "CPU stands for central processing unit."),
    ("What does HTTP stand for?", "HTTP stands for Hypertext Transfer Protocol."),
    ("Tell me a joke", "Why do programmers mix up Halloween and Christmas? Because Oct 31 equals Dec 25."),
    ("How are you?", "All is well here. What can I do for you?"),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Translate 'good night' into German", "Good night is Gute Nacht in German."),
    ("What colour is the sky?", "On a clear day the sky is blue."),
    ("How many days has a week?", "A week has seven days."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("What is photosynthesis?", "Photosynthesis is how plants make sugar from light, water and carbon dioxide."),
    ("Give me a synonym for fast", "Quick."),
    ("Goodbye", "Goodbye! Until next time."),
)
TALK_HELD_OUT: Final[tuple[tuple[str, str], ...]] = (
    ("Good evening", "Good evening! How can I help?"),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("Name three animals", "Cats, dogs and horses."),
    ("Write one sentence about autumn", "In autumn the leaves turn gold."),
    ("What does RAM stand for?", "RAM stands for random-access memory."),
    ("Explain what a loop is in programming", "A loop repeats the same steps until a condition ends it."),
    ("That is great, thanks", "You're welcome."),
    ("What is the opposite of big?", "The opposite of big is small."),
    ("How many months has a year?", "A year has twelve months."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
)
NO_TOOL: Final = (
    "None of the tools that I have can do this.",
    "I have no tool that fits this request.",
    "The tools at hand are for something else, so I cannot do this with them.",
)
#: Put around a wording; the first letter of what follows an opening becomes small.
OPENINGS: Final = ("", "", "", "", "Please ", "Can you ", "Could you please ", "Hey, ", "I would like you to ", "Now ")
OPENINGS_HELD_OUT: Final = ("", "", "Would you ", "Kindly ", "OK, ")
ENDINGS: Final = ("", "", "", ".", " please", ", thanks")
