# ruff: noqa: E501 - tables of sentences read best one a line
"""intents: owns what users of the starter's model ask for, in which words, and the one call that answers it.

Each intent's last wordings are held out: no training row has them. Words in braces are drawn by slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Intent:
    """One thing to ask for."""

    tool: str  #: empty: an answer in words
    arguments: Mapping[str, Any]  #: texts with the same words in braces; Any: JSON
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]
    result: str = ""  #: what the tool answers
    answer: str = ""  #: what is said then


def _intent(tool: str, arguments: Mapping[str, Any], said: str, held_out: str, **more: str) -> Intent:
    told = [tuple(line.strip() for line in text.strip().split("|")) for text in (said, held_out)]
    return Intent(tool, arguments, told[0], told[1], **more)


def _bash(command: str, said: str, held_out: str, result: str = "", answer: str = "") -> Intent:
    return _intent("bash", {"command": command}, said, held_out, result=result, answer=answer)


def _python(code: str, said: str, held_out: str, result: str = "", answer: str = "") -> Intent:
    return _intent("python", {"code": code}, said, held_out, result=result, answer=answer)


INTENTS: Final = (
    _bash(
        "find . -type f | wc -l",
        "How many files are there? | Count the files in my workspace | Count all files here | Tell me the number of files"
        " | How many files do I have? | What is the number of files in the workspace? | Please count my files",
        "How many files are in my workspace? | Give me a count of all the files here | Number of files, please",
        "{n}",
        "There are {n} files.",
    ),
    _bash(
        "wc -l {file}",
        "How many lines does {file} have? | Count the lines in {file} | Count lines of {file} | Line count of {file}?"
        " | Tell me how many lines are in {file} | How long is {file} in lines?",
        "What is the number of lines in {file}? | Please count the lines of {file} | {file}: how many lines?",
        "{n} {file}",
        "{file} has {n} lines.",
    ),
    _bash(
        "wc -w {file}",
        "How many words does {file} have? | Count the words in {file} | Word count of {file}?"
        " | Tell me how many words are in {file} | Count words of {file}",
        "What is the number of words in {file}? | Please count the words of {file}",
        "{n} {file}",
        "{file} has {n} words.",
    ),
    _bash(
        "pwd",
        "Which directory am I in? | What is the current directory? | Print the working directory | Where am I?"
        " | Show the current path | In which folder are we?",
        "What is my working directory? | Tell me the current directory",
        "/workspace",
        "You are in /workspace.",
    ),
    _bash(
        "du -sh {dir}",
        "How big is {dir}? | What is the size of the folder {dir}? | How much space does {dir} take?"
        " | Show the disk usage of {dir} | Tell me the size of {dir}",
        "How much disk space is {dir} using? | Size of the directory {dir}, please",
        "{n}K\t{dir}",
        "{dir} takes {n}K.",
    ),
    _bash(
        "mkdir -p {dir}",
        "Make a directory {dir} | Create the folder {dir} | Create a directory called {dir} | Make a new folder named {dir}"
        " | mkdir {dir} | I need a folder {dir}",
        "Please create a folder named {dir} | Add a new directory {dir}",
        "(no output)",
        "I made the folder {dir}.",
    ),
    _bash(
        "rm {file}",
        "Delete {file} | Remove {file} | Delete the file {file} | Remove the file {file} | Get rid of {file} | Erase {file}",
        "Please delete {file} | Throw away the file {file} | I no longer need {file}, remove it",
        "(no output)",
        "I deleted {file}.",
    ),
    _bash(
        "mv {file} {file2}",
        "Rename {file} to {file2} | Move {file} to {file2} | Change the name of {file} to {file2}"
        " | Give {file} the new name {file2} | Rename the file {file} as {file2}",
        "Please rename {file} to {file2} | {file} should be called {file2} from now on, rename it",
        "(no output)",
        "{file} is {file2} now.",
    ),
    _bash(
        "cp {file} {file2}",
        "Copy {file} to {file2} | Make a copy of {file} named {file2} | Duplicate {file} as {file2}"
        " | Copy the file {file} to {file2} | Back up {file} to {file2}",
        "Please copy {file} to {file2} | I want a copy of {file} called {file2}",
        "(no output)",
        "I copied {file} to {file2}.",
    ),
    _bash(
        "date",
        "What is the date? | Show the date | What day is it today? | What time is it? | Tell me the current time"
        " | Print today's date",
        "What is today's date? | Tell me the date and time",
        "Tue May {d} 09:12:44 UTC 2026",
        "It is May {d}, 2026.",
    ),
    _bash(
        "sort {file}",
        "Sort {file} | Sort the lines of {file} | Show {file} sorted | Print the lines of {file} in order"
        " | Order the lines of {file}",
        "Please sort the lines in {file} | Give me {file} in sorted order",
    ),
    _bash(
        "{cmd}",
        "Run {cmd} | Run the command {cmd} | Execute `{cmd}` | Run `{cmd}` in the shell | Execute the command {cmd}"
        " | Use bash to run {cmd} | Please run `{cmd}`",
        "Can you run {cmd}? | Run this in bash: {cmd} | Execute this shell command: {cmd}",
    ),
    _python(
        "print({a} {op} {b})",
        "What is {a} {op} {b}? | Compute {a} {op} {b} | Calculate {a} {op} {b} | Work out {a} {op} {b} with Python"
        " | Use Python to compute {a} {op} {b} | {a} {op} {b} = ?",
        "How much is {a} {op} {b}? | Please calculate {a} {op} {b} | Evaluate {a} {op} {b}",
        "{c}",
        "{a} {op} {b} = {c}",
    ),
    _python(
        "import math\nprint(math.factorial({s}))",
        "What is the factorial of {s}? | Compute the factorial of {s} | Calculate {s} factorial | Work out {s}!",
        "Give me the factorial of {s} | Please compute {s} factorial",
    ),
    _python(
        "print(sum(range(1, {a} + 1)))",
        "Add the numbers from 1 to {a} | Sum the numbers from 1 to {a} | What is the sum of 1 to {a}?"
        " | Compute the sum of all numbers up to {a}",
        "Give me the sum of the numbers 1 to {a} | Add up all numbers from 1 to {a}",
    ),
    _python(
        "import math\nprint(math.sqrt({a}))",
        "What is the square root of {a}? | Compute the square root of {a} | Calculate the square root of {a} | sqrt of {a}?",
        "Give me the square root of {a} | Please work out the square root of {a}",
    ),
    _python(
        'print("{word}"[::-1])',
        "Reverse the word {word} | Write {word} backwards | Spell {word} backwards | Reverse the text {word}"
        " | Turn the word {word} around",
        "Please reverse {word} | What is {word} spelled backwards?",
    ),
    _python(
        'print(len("{word}"))',
        "How many letters does {word} have? | Count the letters in {word} | How long is the word {word}?"
        " | Length of the word {word}?",
        "Tell me the number of letters in {word} | Please count the letters of {word}",
    ),
    _python(
        "{code}",
        "Run this Python: {code} | Run the Python code {code} | Execute this in Python: {code} | Python: {code}"
        " | Use Python to run {code} | Run `{code}` in Python",
        "Execute the Python program {code} | Please run this Python code: {code}",
    ),
    _intent(
        "read_file",
        {"path": "{file}"},
        "Read {file} | Show me {file} | What is in {file}? | Open {file} | Print the contents of {file} | Display {file}"
        " | Read the file {file} | What does {file} say?",
        "Show the contents of {file} | Let me see {file} | Please read {file} to me",
        result="{text}",
        answer="{file} says: {text}",
    ),
    _intent(
        "read_file",
        {"limit": "{d}", "path": "{file}"},
        "Show the first {d} lines of {file} | Read the first {d} lines of {file} | Print the first {d} lines of {file}"
        " | First {d} lines of {file} | Read only {d} lines of {file}",
        "Give me the first {d} lines of {file} | I want to see the first {d} lines of {file}",
    ),
    _intent(
        "write_file",
        {"content": "{text}", "path": "{file}"},
        'Create {file} with the text "{text}" | Write "{text}" to {file} | Save "{text}" in {file}'
        ' | Put "{text}" into {file} | Make a file {file} that says "{text}" | Write {file} with the content "{text}"'
        ' | Create a file named {file} containing "{text}"',
        'Please write "{text}" into {file} | Store "{text}" in a file called {file} | New file {file}: "{text}"',
        result="wrote {n} bytes to {file}",
        answer="I wrote {file}.",
    ),
    _intent(
        "edit_file",
        {"new": "{word2}", "old": "{word}", "path": "{file}"},
        'Replace "{word}" with "{word2}" in {file} | In {file}, change "{word}" to "{word2}"'
        ' | Change "{word}" to "{word2}" in {file} | Edit {file}: replace "{word}" with "{word2}"'
        ' | In the file {file} replace "{word}" by "{word2}" | Swap "{word}" for "{word2}" in {file}',
        'Please replace "{word}" with "{word2}" in the file {file} | Edit {file} so that "{word}" becomes "{word2}"',
        result="edited {file}, {n} bytes now",
        answer="I changed {file}.",
    ),
    _intent(
        "list_files",
        {"path": "{dir}"},
        "List {dir} | What is in the folder {dir}? | Show the files in {dir} | List the directory {dir}"
        " | Which files are in {dir}? | What files does {dir} have? | Show me the folder {dir}",
        "List the files in {dir} | Let me see what is in the directory {dir} | Please list {dir}",
        result="{file}  {n}",
        answer="{dir} has one file, {file}.",
    ),
    _intent(
        "list_files",
        {"path": "."},
        "List the files | What files are here? | Show my files | List my workspace | Which files do I have?"
        " | What is in the workspace? | Show the files in the workspace | List everything here",
        "Please list my files | Show me what is in my workspace | Which files are here?",
        result="{file}  {n}",
        answer="There is one file, {file}.",
    ),
    _intent(
        "search_files",
        {"pattern": "{word}"},
        'Search for "{word}" | Find lines with "{word}" | Search the files for "{word}" | Where does "{word}" occur?'
        ' | Look for "{word}" in my files | grep "{word}" | Which files mention "{word}"?',
        'Find "{word}" in all files | Search everywhere for "{word}" | Which lines contain "{word}"?',
        result="{file}:{d}: {word}",
        answer="{file} has it in line {d}.",
    ),
    _intent(
        "search_files",
        {"path": "{dir}", "pattern": "{word}"},
        'Search for "{word}" in {dir} | Find lines with "{word}" in the folder {dir} | Look for "{word}" in {dir}'
        ' | grep "{word}" in {dir} | Which files in {dir} mention "{word}"?',
        'Find "{word}" below {dir} | Search the directory {dir} for "{word}"',
    ),
    _intent(
        "glob",
        {"pattern": "**/*.{ext}"},
        "Find all {ext} files | Find every .{ext} file | Which .{ext} files are there? | Search for *.{ext} files"
        " | Find files that end in .{ext} | Where are the {ext} files?",
        "Locate all .{ext} files | Please find the {ext} files | Show me every {ext} file",
        result="{dir}/a.{ext}",
        answer="There is {dir}/a.{ext}.",
    ),
    _intent(
        "javascript",
        {"code": "{js}"},
        "Run this JavaScript: {js} | Run the JavaScript code {js} | Execute this in Node: {js} | JavaScript: {js}"
        " | Use Node to run {js} | Run `{js}` in Node.js",
        "Execute the JavaScript program {js} | Please run this JavaScript code: {js}",
    ),
    _intent(
        "",
        {},
        "Hello | Hi | Hi there | Good morning | Hey",
        "Hello there | Good evening",
        answer="Hello! How can I help you?",
    ),
    _intent(
        "",
        {},
        "Thanks | Thank you | Thanks a lot | Great, thanks",
        "Thank you very much | Many thanks",
        answer="You are welcome.",
    ),
    _intent(
        "",
        {},
        "Who are you? | What are you? | What can you do? | Introduce yourself",
        "Tell me who you are | What are you able to do?",
        answer="I am an assistant. I can run commands and programs, and read and write files.",
    ),
)

#: Tools of strangers, so that names and arguments are read rather than known by heart: name, description, arguments
#: ("name:type:description"), wordings.
OTHERS: Final = (
    (
        "get_weather",
        "Tell the weather of a city.",
        "city:string:The city.",
        "What is the weather in {city}? | Weather for {city} | How is the weather in {city}?",
    ),
    (
        "send_email",
        "Send an email.",
        "subject:string:The subject.;to:string:The address.",
        'Send an email to {mail} with the subject "{text}" | Email {mail} about "{text}"',
    ),
    (
        "set_timer",
        "Start a timer.",
        "minutes:integer:How long.",
        "Set a timer for {d} minutes | Start a {d} minute timer",
    ),
    ("play_song", "Play a song.", "title:string:The song.", 'Play the song "{text}" | Play "{text}"'),
    (
        "add_contact",
        "Add a person to the contacts.",
        "email:string:The address.;name:string:The person.",
        "Add {name} with {mail} to my contacts | Save the contact {name}, {mail}",
    ),
    (
        "convert_currency",
        "Convert an amount of money.",
        "amount:number:How much.;source:string:From.;target:string:To.",
        "Convert {n} {cur} to {cur2} | How much is {n} {cur} in {cur2}?",
    ),
    (
        "book_table",
        "Reserve a table.",
        "guests:integer:How many people.;restaurant:string:Where.",
        'Book a table for {d} at "{text}" | Reserve "{text}" for {d} people',
    ),
    (
        "translate_text",
        "Translate a text.",
        "language:string:The language to translate to.;text:string:The text.",
        'Translate "{text}" to {lang} | Say "{text}" in {lang}',
    ),
    (
        "turn_on_light",
        "Switch on a light.",
        "room:string:The room.",
        "Turn on the light in the {room} | Switch the {room} light on",
    ),
    (
        "get_stock_price",
        "Tell the price of a share.",
        "symbol:string:The symbol.",
        "What is the price of {sym}? | Stock price of {sym}",
    ),
    (
        "create_event",
        "Put an event into the calendar.",
        "day:string:The day.;title:string:What it is.",
        'Put "{text}" on {day} into my calendar | Create the event "{text}" on {day}',
    ),
    (
        "search_web",
        "Search the web.",
        "query:string:Words to look for.",
        'Search the web for "{text}" | Look up "{text}" online',
    ),
    (
        "query_database",
        "Run a query on the database.",
        "table:string:The table.;limit:integer:Most rows.",
        "Get {d} rows of the table {word} | Show {d} rows from {word}",
    ),
    (
        "resize_image",
        "Change the size of an image.",
        "file:string:The image.;width:integer:In pixels.",
        "Resize {file} to {n} pixels | Make {file} {n} pixels wide",
    ),
    (
        "open_ticket",
        "Open a support ticket.",
        "title:string:What is wrong.",
        'Open a ticket: "{text}" | Create a support ticket titled "{text}"',
    ),
    (
        "track_parcel",
        "Tell where a parcel is.",
        "number:string:Its number.",
        "Where is my parcel {code8}? | Track the parcel {code8}",
    ),
)
#: Never trained: neither these names nor these wordings.
UNSEEN: Final = (
    (
        "find_recipe",
        "Find a recipe for a dish.",
        "dish:string:The dish.",
        'Find a recipe for "{text}" | How do I cook "{text}"?',
    ),
    (
        "lock_door",
        "Lock a door.",
        "door:string:Which door.",
        "Lock the {room} door | Please lock the door of the {room}",
    ),
    (
        "post_message",
        "Post a message to a channel.",
        "channel:string:The channel.;message:string:The message.",
        'Post "{text}" to the channel {word} | Send "{text}" to {word}',
    ),
    (
        "schedule_backup",
        "Plan a backup of a folder.",
        "folder:string:The folder.;hour:integer:At which hour.",
        "Back up {dir} at {d} o'clock | Schedule a backup of {dir} for hour {d}",
    ),
    (
        "get_exchange_rate",
        "Tell the exchange rate of a currency.",
        "currency:string:The currency.",
        "What is the exchange rate of {cur}? | Tell me the rate for {cur}",
    ),
    (
        "rent_car",
        "Rent a car in a city.",
        "city:string:Where.;days:integer:How many days.",
        "Rent a car in {city} for {d} days | I need a car for {d} days in {city}",
    ),
    ("mute_device", "Mute a device.", "device:string:The device.", "Mute the {word} | Please mute the device {word}"),
    (
        "lookup_user",
        "Look up a user by address.",
        "email:string:The address.",
        "Who is {mail}? | Find the user with the address {mail}",
    ),
)
