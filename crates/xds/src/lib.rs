#![forbid(unsafe_code)]
//! xDS v3: conversion between wire and model, ADS client and server.
